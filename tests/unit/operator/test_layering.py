"""The pure core stays pure, and the folder never becomes a package that hides the library's."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "operator" / "llm_operator"
SHELL = {"handlers", "kube", "process"}

CORE = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem not in SHELL)


def imports(module: str) -> set[str]:
    """Names of everything that `module` imports, wherever it does so."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("module", CORE)
def test_core_knows_neither_kopf_nor_the_client(module):
    foreign = {name.partition(".")[0] for name in imports(module)} & {"kopf", "kubernetes"}
    assert not foreign


ACTING = {"cache", "configs", "controller", "handlers", "inspection", "kube", "process"}
ACTING |= {"resync", "settings", "workqueue", "writer"}
PURE = {path.stem for path in PACKAGE.glob("*.py") if "Pure." in path.read_text().split('"""')[1]}
DECIDING = sorted(PURE | {"api", "fields", "model", "podspec", "scaling", "exposure", "status"})


def test_the_deciding_modules_say_that_they_are_pure():
    assert {"conditions", "hardware", "podtemplate", "render", "rollout", "pods"} <= {*DECIDING}


@pytest.mark.parametrize("module", DECIDING)
def test_deciding_modules_know_no_input_or_output(module):
    below = {name.split(".")[1] for name in imports(module) if name.startswith("llm_operator.")}
    assert not below & ACTING
    assert not imports(module) & {"asyncio", "os", "time", "random"}


def test_only_kube_uses_the_client():
    users = [path.stem for path in PACKAGE.glob("*.py") if uses(path.stem, "kubernetes")]
    assert users == ["kube"]


def uses(module: str, library: str) -> bool:
    return any(name.partition(".")[0] == library for name in imports(module))


def test_a_folder_named_operator_never_shadows_the_standard_library():
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not (ROOT / "inference" / "__init__.py").exists()
