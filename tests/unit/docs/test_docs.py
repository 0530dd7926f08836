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
from llm_operator import crd
from llm_operator.profiles import HardwareProfile

ROOT = Path(__file__).parents[3]
# Values of the chart that begin like fields of a spec.
CHART = {"image.repository"}


def test_every_setting_of_the_server_is_documented_and_no_other():
    documented = set(re.findall(r"`(LLM_[A-Z_]*[A-Z])`", (ROOT / "docs/server.md").read_text()))
    assert documented == {PREFIX + name.upper() for name in Settings.model_fields}


def test_the_defaults_of_the_servers_settings_are_documented():
    rows = re.findall(r"(?m)^\| `(LLM_[A-Z_]+)` \| (.+?) \|", (ROOT / "docs/server.md").read_text())
    told = {name.removeprefix(PREFIX).lower(): default for name, default in rows}
    for name, field in Settings.model_fields.items():
        if field.default is None:
            assert not told[name].startswith("`"), name  # told in words
        else:
            number = isinstance(field.default, float)
            assert told[name] == f"`{field.default:g}`" if number else f"`{field.default}`", name


def test_every_metric_of_the_server_is_documented():
    text = (ROOT / "docs/server.md").read_text()
    exposed = re.findall(r"^# TYPE (\S+) ", Metrics("m").render().decode(), re.M)
    missing = {name for name in exposed if f"`{name}`" not in text and "_created" not in name}
    assert missing == set()


PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path):
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "README.md"])
def test_every_page_is_found_from_the_readme(page: Path):
    assert f"docs/{page.name}" in (ROOT / "README.md").read_text()


def known(schema: dict, path: str) -> bool:
    """Whether a schema has a field of that path."""
    node = schema
    for name in path.split("."):
        node = node.get("items", node)
        node = node.get("properties", {}).get(name) or node.get("additionalProperties", {})
    return bool(node)


@pytest.mark.parametrize("page", ["README.md", "docs/hardware.md", "docs/scaling.md"])
def test_every_field_that_is_named_exists(page: str):
    schema = crd.custom_resource_definition()["spec"]["versions"][0]["schema"]
    spec = schema["openAPIV3Schema"]["properties"]["spec"]
    roots = "|".join(spec["properties"])
    named = set(re.findall(rf"`((?:{roots})(?:\.[a-zA-Z]+)+)`", (ROOT / page).read_text()))
    assert [path for path in named if not known(spec, path) and path not in CHART] == []


def test_the_profiles_that_are_shown_are_profiles():
    (values,) = re.findall(
        r"```yaml\n(hardwareProfiles:.*?)```", (ROOT / "docs/hardware.md").read_text(), re.S
    )
    for name, body in yaml.safe_load(values)["hardwareProfiles"].items():
        HardwareProfile.read(name, body)


def test_every_field_of_a_profile_is_documented():
    text = (ROOT / "docs/hardware.md").read_text()
    fields = {field.alias for field in HardwareProfile.model_fields.values()}
    assert {field for field in fields if f"`{field}`" not in text} == set()


def test_the_profile_of_the_example_is_documented():
    example = yaml.safe_load((ROOT / "examples/hardware-profile.yaml").read_text())
    assert f"  {example['spec']['hardwareProfile']}:\n" in (ROOT / "docs/hardware.md").read_text()


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
