"""The field reference `docs/api.md`, from the schema of the CRD. Knows Markdown, not the API."""

from collections.abc import Iterator
from typing import Any

from llm_operator import api

Schema = dict[str, Any]

# What is as in a pod or a NetworkPolicy, Kubernetes' own documentation describes in detail.
_FOLDED = (
    "affinity.nodeAffinity.",
    "affinity.podAffinity.",
    "affinity.podAntiAffinity.",
    "topologySpreadConstraints[].labelSelector.",
    "networkPolicy.ingressFrom[].",
    "networkPolicy.egress[].",
)

_HEAD = f"""\
# API reference: `{api.API_VERSION}`, {api.KIND}

Generated from the models by `python -m llm_operator.crd`. The same words are in
`kubectl explain {api.SINGULAR}.spec --recursive`.
"""


def reference(schema: Schema) -> str:
    """The reference for the schema of the whole object, as Markdown."""
    sections = [_HEAD]
    for name in ("spec", "status"):
        sections.append(f"## `{name}`\n\n{_text(schema['properties'][name])}\n")
        sections.append(_table(schema["properties"][name]))
    sections.append(_refusals(schema))
    return "\n".join(sections)


def _table(schema: Schema) -> str:
    rows = ["| field | type | meaning |", "|---|---|---|"]
    rows += [
        f"| `{path}` | {_type(node)} | {_text(node)}{_default(node)} |"
        for path, node in fields(schema)
        if not path.startswith(_FOLDED)
    ]
    return "\n".join(rows) + "\n"


def _refusals(schema: Schema) -> str:
    nodes = [schema, *(node for _, node in fields(schema))]
    messages = [
        rule["message"]
        for node in nodes
        for part in (node, node.get("items", {}))
        for rule in part.get("x-kubernetes-validations", ())
    ]
    lines = "\n".join(f"- {message}" for message in dict.fromkeys(messages))
    return f"## Combinations that are refused\n\nWhat `kubectl apply` then says:\n\n{lines}\n"


def fields(schema: Schema, prefix: str = "") -> Iterator[tuple[str, Schema]]:
    """Every field with its path; items of a list are marked by []."""
    required = schema.get("required", ())
    children = schema.get("properties", {})
    for name in sorted(children, key=lambda name: name not in required):
        node = children[name]
        yield prefix + name, node
        yield from fields(node, f"{prefix}{name}.")
        if "properties" in node.get("items", {}):
            yield from fields(node["items"], f"{prefix}{name}[].")


def _type(node: Schema) -> str:
    if node.get("x-kubernetes-int-or-string"):
        return "number or percentage" if node["pattern"].endswith("%$") else "quantity"
    if "enum" in node:
        return " \\| ".join(f"`{value}`" for value in node["enum"])
    if node.get("type") == "array":
        return f"list of {_type(node['items'])}"
    if isinstance(node.get("additionalProperties"), dict):
        return f"map to {_type(node['additionalProperties'])}"
    bounds = [
        f"{sign} {node[key]}" for sign, key in (("≥", "minimum"), ("≤", "maximum")) if key in node
    ]
    return " ".join([str(node.get("type", "object")), ", ".join(bounds)]).strip()


def _default(node: Schema) -> str:
    return f" Default: `{node['default']}`." if "default" in node else ""


def _text(node: Schema) -> str:
    return str(node.get("description", "")).replace("|", "\\|")
