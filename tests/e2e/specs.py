"""Specs as users might write them, generated from the CRD's own schema.

Whatever the schema allows may come, and words that look like names and are none where it cannot
look. Knows the form of schemas, and a few shapes that chance would hardly ever meet. Does not know
what a field means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from llm_operator import crd
from llm_operator.reference import fields

Schema = dict[str, Any]
Strategy = st.SearchStrategy[Any]

SCHEMA: Schema = crd.custom_resource_definition()["spec"]["versions"][0]["schema"][
    "openAPIV3Schema"
]["properties"]["spec"]

# What may stand where the schema takes any text, and as keys of maps.
WORDS = (
    "a", "b", "team", "A-b_c.D", "v1.2", "7", "true", "cpu", "memory", "example.com/nic",
    "kubernetes.io/hostname", "topology.kubernetes.io/zone", "x" * 63,
    # and what is no name, or a name that means something else
    "", "-a", "a-", "a b", "é", "a/b/c", "/a", "a/", "A.example/b", "a..b/c", "x" * 64, "*",
    "requests.example.com/nic", "hugepages-2Mi", "storage", "pods", "kubernetes.io/nic",
    "app.kubernetes.io/name", "pod-template-hash", "metadata.name", "a\nb", "..", "$(A)", "../a",
)  # fmt: skip
QUANTITIES = (1, 2, "1", "500m", "1Gi", "1.5Gi", "1e3", "1E", 0, "0", "0.1m", "1e30", "9" * 30)
# Where chance would hardly ever find a right value.
CHOICES = {
    "hardwareProfile": ("small", "large", "missing"),
    "fieldPath": ("metadata.name", "metadata.labels['a/b']", "status.podIP", "spec.containers"),
    "cidr": ("10.0.0.0/8", "0.0.0.0/0", "::/0", "10.1.2.3/8", "10.0.0.1", "a"),
    "except[]": ("10.1.0.0/16", "10.0.0.0/8", "192.168.0.0/16", "b"),
}
# Members that only make sense together.
_QUERIED = {
    "type": "prometheus",
    "target": 4,
    "serverAddress": "http://prometheus.monitoring:9090",
    "query": "sum(a)",
}
# What has no schema.
_SELECTED = {
    "topologyKey": "topology.kubernetes.io/zone",
    "labelSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["a"]}]},
}
NEAR = {
    "preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 5, "podAffinityTerm": _SELECTED | {"namespaces": ["a", "b"]}}
    ]
}
APART = {
    "requiredDuringSchedulingIgnoredDuringExecution": [
        _SELECTED
        | {
            "namespaceSelector": {},
            "matchLabelKeys": ["pod-template-hash"],
            "mismatchLabelKeys": ["team"],
        }
    ]
}
TOGETHER: dict[str, tuple[Schema, ...]] = {
    "podAffinity": (NEAR, APART),
    "podAntiAffinity": (NEAR, APART),
    "autoscaling": (
        {"maxReplicas": 3, "metric": {"type": "waitingRequests", "target": 4}},
        {"maxReplicas": 3, "minReplicas": 0, "metric": _QUERIED},
    ),
    "monitoring": ({"enabled": True}, {"enabled": True, "interval": "5m", "labels": {"a": "b"}}),
    "nodeAffinity": (
        {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["5"]}]}
                ]
            }
        },
    ),
}
# Of these objects one member is wanted.
ONE_OF = (
    "model.source", "cache", "valueFrom", "envFrom[]", "ingressFrom[]", "to[]",
)  # fmt: skip


def spec() -> Strategy:
    """Any spec: a model, and a few of all the other fields."""
    return _object(SCHEMA, "", most=8)


def leaves() -> Iterator[str]:
    """Paths of all fields that are not made of fields; items of lists are marked by []."""
    for path, node in fields(SCHEMA):
        if not _members(node) and not _members(node.get("items", {})):
            yield path


def at(path: str) -> Schema:
    """The schema of the field at `path`."""
    node = SCHEMA
    for name in path.split("."):
        node = node["properties"][name.removesuffix("[]")]
        node = node["items"] if name.endswith("[]") else node
    return node


def values(path: str) -> Strategy:
    """Values of the field at `path`."""
    return _any(at(path), path)


def around(path: str, value: Any) -> Strategy:
    """The least specs with `value` at `path`: what else they must say is there too."""
    return _around(SCHEMA, "", path.split("."), value)


def _around(node: Schema, above: str, names: list[str], value: Any) -> Strategy:
    if not names:
        return st.just(value)
    first, *rest = names
    name = first.removesuffix("[]")
    child, path = node["properties"][name], f"{above}{first}"
    inside = child["items"] if first.endswith("[]") else child
    here = _around(inside, f"{path}.", rest, value)
    if first.endswith("[]"):
        here = here.map(lambda item: [item])
    needed = {
        other: _any(node["properties"][other], f"{above}{other}")
        for other in node.get("required", ())
    }
    return st.fixed_dictionaries(needed | {name: here})


def _members(node: Schema) -> Schema:
    members: Schema = node.get("properties", {})
    return members


def _any(node: Schema, path: str) -> Strategy:
    choices = CHOICES.get(path.rpartition(".")[2])
    if choices or "enum" in node:
        return st.sampled_from(choices or node["enum"])
    if path.rpartition(".")[2] in TOGETHER:
        together = st.sampled_from(TOGETHER[path.rpartition(".")[2]])
        return st.one_of(_object(node, path, most=4), together)
    if node.get("x-kubernetes-int-or-string"):
        return _int_or_string(node)
    made = {
        "object": lambda: _object(node, path, most=4),
        "array": lambda: _array(node, path),
        "string": lambda: _string(node),
        "integer": lambda: _integer(node),
        "boolean": st.booleans,
    }
    strategy: Strategy = made[node["type"]]()
    return strategy


def _object(node: Schema, path: str, *, most: int) -> Strategy:
    if isinstance(node.get("additionalProperties"), dict):
        inside = _any(node["additionalProperties"], f"{path}{{}}")
        return st.dictionaries(st.sampled_from(WORDS), inside, max_size=3)
    members = {
        name: _any(child, f"{path}.{name}".lstrip(".")) for name, child in _members(node).items()
    }
    needed = {name: members[name] for name in node.get("required", ())}
    optional = [name for name in members if name not in needed]
    if not optional:
        return st.fixed_dictionaries(needed)
    one = path.endswith(ONE_OF)
    chosen = st.lists(
        st.sampled_from(optional), min_size=int(one), max_size=1 if one else most, unique=True
    )
    return chosen.flatmap(
        lambda names: st.fixed_dictionaries(needed | {name: members[name] for name in names})
    )


def _array(node: Schema, path: str) -> Strategy:
    return st.lists(
        _any(node["items"], f"{path}[]"),
        min_size=node.get("minItems", 0),
        max_size=min(node["maxItems"], 3),
    )


def _int_or_string(node: Schema) -> Strategy:
    least, most = node.get("minimum", 0), node.get("maximum", 2**31)
    texts = st.from_regex(re.compile(node["pattern"], re.ASCII), fullmatch=True)
    return st.one_of(
        st.sampled_from(QUANTITIES),
        st.integers(least, most),
        texts.filter(lambda text: len(text) <= node["maxLength"]),
    )


def _integer(node: Schema) -> Strategy:
    least, most = node["minimum"], node["maximum"]
    return st.one_of(st.integers(least, min(least + 10, most)), st.sampled_from((least, most)))


def _string(node: Schema) -> Strategy:
    most, pattern = node["maxLength"], node.get("pattern", "")
    words = [
        word
        for word in WORDS
        if node.get("minLength", 0) <= len(word) <= most and re.search(pattern, word)
    ]
    if not pattern:
        return st.sampled_from(words)
    made = st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True)
    fitting = made.filter(lambda text: len(text) <= most)
    return st.one_of(fitting, st.sampled_from(words)) if words else fitting
