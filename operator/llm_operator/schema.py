"""JSON schema of a pydantic model, made structural as Kubernetes wants it.

This module knows the difference between the two dialects. It does not know the API.
See https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions
("Specifying a structural schema").
"""

import inspect
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]

# Meaningless to Kubernetes, or said in another way (nullable, additionalProperties).
_DROPPED = ("title", "$defs")


def structural(model: type[BaseModel]) -> Schema:
    """The structural schema of `model`: no references, no unions but int-or-string, no nulls."""
    schema = model.model_json_schema(by_alias=True)
    return _convert(schema, schema.get("$defs", {}))


def _convert(node: Schema, definitions: dict[str, Schema]) -> Schema:
    node = _without_null(_inlined(node, definitions), definitions)
    for key in _DROPPED:
        node.pop(key, None)
    if "description" in node:
        node["description"] = " ".join(inspect.cleandoc(node["description"]).split())
    _drop_default(node)
    if "const" in node:
        node["enum"] = [node.pop("const")]
    if "properties" in node:
        node["properties"] = {
            name: _convert(child, definitions) for name, child in node["properties"].items()
        }
    if "items" in node:
        node["items"] = _convert(node["items"], definitions)
    _convert_mapping(node, definitions)
    return node


def _inlined(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """`node` with its reference replaced by the definition; what stands beside it wins."""
    node = dict(node)
    reference = node.pop("$ref", None)
    if reference is None:
        return node
    return _inlined(definitions[reference.rpartition("/")[2]], definitions) | node


def _without_null(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """`T | None` as `T`: in Kubernetes an absent field says None."""
    if "anyOf" not in node or node.get("x-kubernetes-int-or-string"):
        return node
    options = [option for option in node.pop("anyOf") if option.get("type") != "null"]
    if len(options) != 1:
        msg = f"a union of {len(options)} types is not structural: {options}"
        raise TypeError(msg)
    return _without_null(_inlined(options[0], definitions) | node, definitions)


def _drop_default(node: Schema) -> None:
    """Keep the default of a scalar alone: an object or list is never written into a user's spec."""
    if "default" in node and isinstance(node["default"], dict | list | None):
        del node["default"]


def _convert_mapping(node: Schema, definitions: dict[str, Schema]) -> None:
    # What is said of keys has no structural counterpart: that is left to CEL.
    node.pop("propertyNames", None)
    for values in node.pop("patternProperties", {}).values():
        node["additionalProperties"] = values
    values = node.get("additionalProperties")
    if node.get("x-kubernetes-preserve-unknown-fields") or values is False:
        node.pop("additionalProperties", None)
    elif isinstance(values, dict):
        node["additionalProperties"] = _convert(values, definitions)
