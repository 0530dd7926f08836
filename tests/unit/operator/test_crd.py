"""The CRD in the repository is the generated one, and keeps what it promises to users."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from llm_operator import api, crd

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def schema() -> dict:
    version = crd.custom_resource_definition()["spec"]["versions"][0]
    return version["schema"]["openAPIV3Schema"]


def fields(node: dict, path: str = "") -> Iterator[tuple[str, dict]]:
    """Every property of a schema with its path."""
    for name, child in node.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from fields(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield f"{path}[]", node[key]
            yield from fields(node[key], f"{path}[]")


def test_files_are_up_to_date(capsys):
    assert crd.main(["--check"]) == 0, capsys.readouterr().err


def test_check_tells_which_file_is_stale(tmp_path, capsys):
    assert crd.main(["--root", str(tmp_path)]) == 0
    stale = next(iter(crd.files(tmp_path)))
    stale.write_text("edited by hand")
    assert crd.main(["--check", "--root", str(tmp_path)]) == 1
    assert str(stale) in capsys.readouterr().err
    assert stale.read_text() == "edited by hand"


def test_chart_copy_is_the_same_inside_its_switches():
    template = crd.chart_template()
    inside = re.sub(r"^\s*\{\{-.*\}\}\n", "", template, flags=re.MULTILINE)
    inside = inside.replace("  annotations:\n    helm.sh/resource-policy: keep\n", "")
    assert inside == crd.manifest()


def test_kubernetes_accepts_its_form():
    kubernetes_validate.validate(crd.custom_resource_definition(), "1.37", strict=True)


def test_it_stays_small():
    compact = json.dumps(crd.custom_resource_definition(), separators=(",", ":"))
    assert len(compact) < 60_000


def test_every_field_is_described():
    undescribed = [
        path
        for path, node in fields(schema())
        if not node.get("description") and not path.endswith("[]") and path != ".metadata"
    ]
    assert not undescribed


def test_every_string_list_and_map_is_bounded():
    unbounded = []
    for path, node in fields(schema()):
        if path in (".metadata", ".apiVersion", ".kind"):
            continue
        kind = node.get("type")
        if kind == "string" and not {"maxLength", "enum", "format"} & node.keys():
            unbounded.append(path)
        if kind == "array" and "maxItems" not in node:
            unbounded.append(path)
        if "additionalProperties" in node and "maxProperties" not in node:
            unbounded.append(path)
        if (
            kind == "integer"
            and path.startswith(".spec")
            and not {"minimum", "maximum"} <= set(node)
        ):
            unbounded.append(path)
    assert not unbounded


def test_nothing_is_passed_on_unseen_but_what_the_deployment_alone_can_check():
    opened = [path for path, node in fields(schema()) if "preserve-unknown" in str([*node])]
    assert opened == [".spec.affinity.podAffinity", ".spec.affinity.podAntiAffinity"]


def test_every_rule_says_what_to_change():
    nodes = [schema(), *(node for _, node in fields(schema()))]
    rules = [rule for node in nodes for rule in node.get("x-kubernetes-validations", [])]
    assert len(rules) >= 10
    assert all(len(rule["message"]) > 30 for rule in rules)


def test_nothing_but_scalars_is_written_into_a_users_spec():
    defaults = {
        path: node["default"]
        for path, node in fields(schema())
        if "default" in node and path.startswith(".spec")
    }
    assert all(isinstance(value, str | int) for value in defaults.values())
    assert defaults[".spec.replicas"] == 1  # the scale subresource takes a missing one for 0


def test_a_new_objects_status_speaks_of_no_generation():
    """Without one, kstatus takes an object without conditions for done."""
    assert schema()["properties"]["status"]["default"] == {"observedGeneration": -1}


def test_columns_show_what_matters():
    columns = crd.custom_resource_definition()["spec"]["versions"][0]["additionalPrinterColumns"]
    shown = [column["name"] for column in columns if column["priority"] == 0]
    wide = [column["name"] for column in columns if column["priority"] == 1]
    assert shown == ["Model", "Target", "Replicas", "Ready", "Reason", "Cold-Start", "Age"]
    assert wide == ["Device", "Image", "Endpoint", "Message"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_fit_the_schema_and_use_only_known_fields(path):
    closed = closing(schema())
    documents = [each for each in yaml.safe_load_all(path.read_text()) if each["kind"] == api.KIND]
    assert documents
    for document in documents:
        jsonschema.validate(document, closed)


def closing(node: dict) -> dict:
    """The schema with unknown fields refused, where the API server would drop them."""
    node = dict(node)
    if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
        node["properties"] = {name: closing(child) for name, child in node["properties"].items()}
        if node["properties"]:
            node.setdefault("additionalProperties", False)
    if isinstance(node.get("items"), dict):
        node["items"] = closing(node["items"])
    return node
