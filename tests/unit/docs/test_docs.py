"""The documents name what the code has."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from llm_inference import __version__
from llm_inference.metrics import Metrics
from llm_inference.settings import PREFIX, Settings

ROOT = Path(__file__).parents[3]


def test_every_setting_of_the_server_is_documented_and_no_other():
    documented = set(re.findall(r"`(LLM_[A-Z_]*[A-Z])`", (ROOT / "docs/server.md").read_text()))
    assert documented == {PREFIX + name.upper() for name in Settings.model_fields}


def test_every_metric_of_the_server_is_documented():
    text = (ROOT / "docs/server.md").read_text()
    exposed = re.findall(r"^# TYPE (\S+) ", Metrics("m").render().decode(), re.M)
    missing = {name for name in exposed if f"`{name}`" not in text and "_created" not in name}
    assert missing == set()


@pytest.mark.parametrize("page", ["README.md", "docs/server.md", "docs/api.md"])
def test_every_link_leads_somewhere(page: str):
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text())
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert missing == []


def test_every_make_target_in_the_readme_exists():
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"(?m)(?:^|`)make ([a-z0-9 -]*[a-z0-9])", readme)
    named = {word for command in commands for word in command.split()}
    rules = re.findall(r"(?m)^([a-z0-9 -]+):(?!=)", (ROOT / "Makefile").read_text())
    targets = {word for rule in rules for word in rule.split()}
    assert {"demo", "test", "down", "clean"} <= named
    assert named - targets == set()


def test_there_is_one_version():
    chart = yaml.safe_load((ROOT / "deploy/helm/llm-operator/Chart.yaml").read_text())
    bake = (ROOT / "docker-bake.hcl").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    baked = re.search(r'variable "VERSION" {\s+default = "([^"]+)"', bake)
    assert baked is not None
    assert {project} == {chart["version"], chart["appVersion"], __version__, baked[1]}
