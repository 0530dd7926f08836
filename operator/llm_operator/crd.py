"""The CustomResourceDefinition, generated from the API models.

`python -m llm_operator.crd` writes it to `deploy/crds`, behind a switch into the chart, and the
field reference to `docs`; `--check` writes nothing and fails if a file differs. Knows the files;
the API is in `api`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from llm_operator import api
from llm_operator.fields import rules
from llm_operator.reference import reference
from llm_operator.schema import structural
from llm_operator.status import UNOBSERVED, LLMDeploymentStatus

CRD_NAME = f"{api.PLURAL}.{api.GROUP}"

_HEADER = "# Generated from operator/llm_operator/api.py by `python -m llm_operator.crd`.\n"
_CHART_HEAD = "{{- if .Values.crds.enabled }}\n"
_CHART_KEEP = """\
  {{- if .Values.crds.keep }}
  annotations:
    helm.sh/resource-policy: keep
  {{- end }}
"""
_CHART_TAIL = "{{- end }}\n"

# The name becomes the Service's and a label's value, which are stricter than an object's name.
_NAME_RULES = rules(
    (
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')"
        " && self.metadata.name.size() <= 63",
        "metadata.name becomes the name of the Service: use at most 63 lower-case letters, digits"
        " and dashes, beginning with a letter",
    )
)


def custom_resource_definition() -> dict[str, Any]:
    """The CustomResourceDefinition of LLMDeployment."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": CRD_NAME},
        "spec": {
            "group": api.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": api.KIND,
                "listKind": f"{api.KIND}List",
                "plural": api.PLURAL,
                "singular": api.SINGULAR,
                "shortNames": list(api.SHORT_NAMES),
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": api.VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": _printer_columns(),
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "schema": {"openAPIV3Schema": _schema()},
                }
            ],
        },
    }


def _schema() -> dict[str, Any]:
    return {
        "type": "object",
        "description": api.LLMDeployment.__doc__,
        "required": ["spec"],
        **_NAME_RULES,
        "properties": {
            "apiVersion": {"type": "string", "description": f"Always {api.API_VERSION}."},
            "kind": {"type": "string", "description": f"Always {api.KIND}."},
            "metadata": {"type": "object"},
            "spec": structural(api.LLMDeploymentSpec),
            "status": structural(LLMDeploymentStatus)
            | {"default": {"observedGeneration": UNOBSERVED}},
        },
    }


def _printer_columns() -> list[dict[str, Any]]:
    ready = '.status.conditions[?(@.type=="Ready")]'
    columns = [
        ("Model", "string", ".spec.model.id", 0),
        ("Target", "string", ".status.target", 0),
        ("Replicas", "string", ".status.replicasReady", 0),
        ("Ready", "string", f"{ready}.status", 0),
        ("Reason", "string", f"{ready}.reason", 0),
        ("Cold-Start", "string", ".status.coldStart.total", 0),
        ("Age", "date", ".metadata.creationTimestamp", 0),
        ("Device", "string", ".status.device.name", 1),
        ("Image", "string", ".status.image", 1),
        ("Endpoint", "string", ".status.endpoint", 1),
        ("Message", "string", f"{ready}.message", 1),
    ]
    return [
        {"name": name, "type": kind, "jsonPath": path, "priority": priority}
        for name, kind, path, priority in columns
    ]


def manifest() -> str:
    """The CRD as YAML, as `kubectl apply` takes it."""
    body = yaml.safe_dump(
        custom_resource_definition(), sort_keys=False, width=100, allow_unicode=True
    )
    return _HEADER + body


def chart_template() -> str:
    """The CRD as a template of the chart, switched by `crds.enabled` and `crds.keep`."""
    name_line = f"  name: {CRD_NAME}\n"
    head, found, tail = manifest().partition(name_line)
    if not found or "{{" in tail:
        msg = "the CRD cannot be wrapped into a template"
        raise ValueError(msg)
    return _CHART_HEAD + head + found + _CHART_KEEP + tail + _CHART_TAIL


def files(root: Path) -> dict[Path, str]:
    """Every generated file under the repository `root`, with its content."""
    return {
        root / "deploy" / "crds" / f"{CRD_NAME}.yaml": manifest(),
        root / "deploy" / "helm" / "llm-operator" / "templates" / "crd.yaml": chart_template(),
        root / "docs" / "api.md": reference(_schema()),
    }


def main(argv: list[str] | None = None) -> int:
    """Write the files, or with --check report the ones that differ. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="llm_operator.crd", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(__file__).resolve().parents[2],
        help="root of the repository (default: the checkout that holds this module)",
    )
    arguments = parser.parse_args(argv)
    stale = [
        path
        for path, content in files(arguments.root).items()
        if not path.exists() or path.read_text(encoding="utf-8") != content
    ]
    for path in stale:
        if arguments.check:
            print(f"{path} is stale: run `python -m llm_operator.crd`", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files(arguments.root)[path], encoding="utf-8")
            print(f"wrote {path}")
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
