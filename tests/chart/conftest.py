import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.cluster import tools

CHART = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "llm-operator"


@pytest.fixture(scope="session")
def helm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the development cluster's helm; `python3 -m dev.cluster build` makes it."""
    binary = tools.path("helm")
    assert binary.exists(), "no helm: run `python3 -m dev.cluster build` first"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(binary), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    return run


@pytest.fixture
def template(helm) -> Callable[..., list[dict[str, Any]]]:
    """The objects of the chart for a set of values, as `--set` takes them."""

    def render(*values: str, files: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
        done = helm(
            "template",
            "llm-operator",
            str(CHART),
            "--namespace=llm-operator-system",
            "--set=image.repository=registry.example.com/llm-operator",
            *(f"--values={path}" for path in files),
            *(f"--set={value}" for value in values),
        )
        assert done.returncode == 0, done.stderr
        return [document for document in yaml.safe_load_all(done.stdout) if document]

    return render


def one(objects: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    """The only object of a kind, or of a kind and name."""
    found = [
        each
        for each in objects
        if each["kind"] == kind and name in (None, each["metadata"]["name"])
    ]
    assert len(found) == 1, [each["metadata"]["name"] for each in found]
    return found[0]
