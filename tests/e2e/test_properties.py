"""What holds of every spec: whatever the API server accepts becomes objects that it accepts too, or
is refused by the operator with a sentence; and no field is silent.

Examples are the same in every run. Dry runs leave nothing behind.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings

from llm_operator import quantities, resources, validity
from tests.e2e import specs
from tests.e2e.api_server import ApiServer, Body, RefusedError, server
from tests.e2e.rendering import pod, rendered, stored

__all__ = ["server"]

STABLE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
# Few specs would have all kinds of objects.
ON_REQUESTS, BY_QUERY = specs.TOGETHER["autoscaling"]


def test_what_is_accepted_becomes_objects_that_are_accepted(server: ApiServer):
    outcomes: Counter[str] = Counter()
    said: list[str] = []

    @settings(STABLE, max_examples=400)
    @given(specs.spec())
    @example({"model": {"id": "a/b"}, "replicas": 2, "autoscaling": ON_REQUESTS})
    @example({"model": {"id": "a/b"}, "monitoring": {"enabled": True}, "autoscaling": BY_QUERY})
    def holds(spec: Body) -> None:
        try:
            _, objects = rendered(stored(server, spec))
        except (RefusedError, validity.InvalidSpecError) as refused:
            outcomes[type(refused).__name__] += 1
            said.append(str(refused))
            return
        for manifest in objects:
            server.apply(manifest)
            outcomes[manifest["kind"]] += 1
        server.create(pod(objects[0]))

    holds()
    assert all(len(sentence) > 30 for sentence in said)
    # None of it is worth anything if hardly a spec comes through, or a kind is never seen.
    assert outcomes["Deployment"] > 100, outcomes
    assert {resource.kind for resource in resources.OWNED} <= outcomes.keys(), outcomes


# What a field needs beside it to be accepted, or to matter. By the beginning of its path.
COMPANIONS: Mapping[str, Body] = {
    "model.source.hub.cache.storageClassName": {
        "model": {"source": {"hub": {"cache": {"size": "1Gi"}}}}
    },
    "image.cpu": {"target": "cpu"},
    "image.gpu": {"target": "gpu"},
    "autoscaling": {"autoscaling": {"maxReplicas": 10_000}, "resources": {"requests": {"cpu": 1}}},
    "autoscaling.maxReplicas": {"resources": {"requests": {"cpu": 1}}},
    "autoscaling.metric": {
        "autoscaling": {"maxReplicas": 3, "metric": {"target": 5}},
        "resources": {"requests": {"cpu": 1}},
    },
    **{
        f"autoscaling.metric.{name}": {
            "autoscaling": {
                "maxReplicas": 3,
                "metric": {"type": "prometheus", "target": 5, other: value},
            }
        }
        for name, other, value in (
            ("serverAddress", "query", "sum(up)"),
            ("query", "serverAddress", "http://prometheus"),
        )
    },
    "tolerations[]": {"tolerations": [{"key": "a"}]},
    "tolerations[].key": {},
    "tolerations[].tolerationSeconds": {"tolerations": [{"key": "a", "effect": "NoExecute"}]},
    "topologySpreadConstraints[].minDomains": {
        "topologySpreadConstraints": [{"whenUnsatisfiable": "DoNotSchedule"}]
    },
    "rollout.max": {"rollout": {"strategy": "RollingUpdate"}},
    "server.envFrom[].prefix": {"server": {"envFrom": [{"secretRef": {"name": "a"}}]}},
    "monitoring": {"monitoring": {"enabled": True}},
    "monitoring.enabled": {},
}
# What members of a selector need beside them, wherever it stands.
BESIDE = {
    "matchExpressions[].operator": {"values": ["1"]},
    "matchExpressions[].values": {"operator": "In"},
    "ports[].endPort": {"port": 1},
    "ipBlock.except": {"cidr": "10.0.0.0/8"},
}
# Said aloud it is what it would be anyway, or can be said in one way alone: it has no two values.
NO_CHOICE = {"model.source.preloaded"} | {
    path for path in specs.leaves() if len(specs.at(path).get("enum", ("", ""))) == 1
}


@pytest.mark.parametrize("path", sorted({*specs.leaves()} - NO_CHOICE))
def test_no_field_is_silent(server: ApiServer, path: str):
    different: list[tuple[Any, Any]] = []

    @settings(STABLE, max_examples=15)
    @given(specs.values(path), specs.values(path), specs.around(path, "HERE"))
    def holds(one: Any, other: Any, base: Body) -> None:
        if one == other or len(different) == 2:
            return
        try:
            outcomes = [rendered(stored(server, placed(base, path, each))) for each in (one, other)]
        except (RefusedError, validity.InvalidSpecError):
            return  # with a sentence, as above
        if outcomes[0] != outcomes[1]:
            different.append((one, other))
        else:
            assert equal(path, one, other)

    holds()
    assert different, "no two values of this field were accepted"


def placed(base: Body, path: str, value: Any) -> Body:
    """`base` with `value` in its place, and what has to be beside it."""
    matching = [prefix for prefix in COMPANIONS if path.startswith(prefix)]
    spec = merged(base, COMPANIONS[max(matching, key=len)] if matching else {})
    return _placed(spec, value, BESIDE.get(".".join(path.split(".")[-2:]), {}))


def _placed(node: Any, value: Any, beside: Body) -> Any:
    if isinstance(node, list):
        return [_placed(item, value, beside) for item in node]
    if not isinstance(node, dict):
        return value if node == "HERE" else node
    inside = {name: _placed(child, value, beside) for name, child in node.items()}
    return inside | beside if "HERE" in node.values() else inside


def merged(base: Any, over: Any) -> Any:
    """`base` with the members of `over`, in the first item of lists too."""
    if isinstance(base, dict) and isinstance(over, dict):
        both = {name: merged(base[name], over[name]) for name in base.keys() & over.keys()}
        return base | {name: value for name, value in over.items() if name not in base} | both
    if isinstance(base, list) and isinstance(over, list):
        return [merged(base[0], over[0])]
    return base if base == "HERE" else over


def equal(path: str, one: Any, other: Any) -> bool:
    """Whether two values mean the same, by definition."""
    if path == "rollout.strategy":  # these differ only once a new pod finds no GPU
        return {one, other} == {"auto", "RollingUpdate"}
    if path == "gpu.minMemory":  # compared with a label in MiB
        return mebibytes(one) == mebibytes(other)
    return str(one).replace("'", "") == str(other).replace("'", "")  # 1 and "1"


def mebibytes(quantity: int | str) -> int:
    return math.ceil(quantities.parse(quantity) / 2**20)
