"""Plain manifests: what is left unsaid is left out, and a digest tells two apart. Pure."""

import hashlib
import json
from typing import Any

from llm_operator.fields import ApiModel

Manifest = dict[str, Any]

# What users pass through: there an empty object says something, namely everything.
_VERBATIM = frozenset(
    {"affinity", "labelSelector", "podSelector", "namespaceSelector", "from", "egress", "ingress"}
)
_MEANT_EMPTY = frozenset({"emptyDir", "labelSelector", "podSelector", "ingress", "egress"})


def dump(model: ApiModel) -> Manifest:
    """A part of the spec as it stands in a manifest."""
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def digest(manifest: Manifest) -> str:
    """Ten hexadecimal digits over the pruned manifest."""
    canonical = json.dumps(pruned(manifest), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def pruned(node: Manifest) -> Manifest:
    """`node` without what is not said: None, and objects and lists that are left empty."""
    said = {
        name: child if name in _VERBATIM else _pruned_child(child) for name, child in node.items()
    }
    return {
        name: child
        for name, child in said.items()
        if child is not None and (child not in ({}, []) or name in _MEANT_EMPTY)
    }


def _pruned_child(child: object) -> object:
    if isinstance(child, dict):
        return pruned(child)
    if isinstance(child, list):
        return [_pruned_child(item) for item in child]
    return child
