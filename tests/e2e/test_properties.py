"""What holds of every spec: whatever the API server accepts becomes objects that it accepts too, or
is refused by the operator with a sentence; and no field is silent.

Examples are the same in every run. Dry runs leave nothing behind.
"""

from __future__ import annotations

import json
import math
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings

from dev.cluster import paths
from llm_operator import api, hardware, images, kube, podtemplate, quantities, render, validity
from llm_operator.profiles import HardwareProfile
from llm_operator.settings import RuntimeImage
from tests.e2e import specs
from tests.e2e.api_server import ApiServer, Body, RefusedError
from tests.e2e.conftest import dev_cluster
from tests.e2e.harness import Kubectl, eventually

STABLE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
RUNTIME = RuntimeImage(repository="registry.example/llm", tag="v1")
PROFILES = {
    "small": HardwareProfile.read("small", {"resources": {"limits": {"cpu": 1}}}),
    "large": HardwareProfile.read(
        "large", {"gpu": {"count": 2}, "tolerations": [{"key": "large", "operator": "Exists"}]}
    ),
}
# Few specs would have all kinds of objects.
ON_REQUESTS, BY_QUERY = specs.TOGETHER["autoscaling"]
# What a dry run of a pod looks up, and nobody made.
LOOKED_UP = {"serviceAccountName", "priorityClassName", "runtimeClassName"}


@pytest.fixture(scope="module")
def server(crd: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """The API server, in a namespace that enforces Pod Security `restricted`, with all kinds."""
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    crd("create", "-f", "-", stdin=json.dumps(namespace))
    inside = Kubectl(crd.binary, crd.kubeconfig, name)
    eventually(lambda: inside.exists("serviceaccount", "default"), within=30)  # pods need it
    asked = ApiServer(paths.KUBECONFIG, tmp_path_factory.mktemp("client"), name)
    foreign = {"keda": "keda.sh/v1alpha1", "prometheus": "monitoring.coreos.com/v1"}
    missing = [source for source, version in foreign.items() if not asked.serves(version)]
    for source in foreign:
        dev_cluster("crds", source, "on")
    yield asked
    for source in missing:
        dev_cluster("crds", source, "off")
    asked.close()
    crd("delete", "namespace", name, "--wait=false")


def stored(server: ApiServer, spec: Mapping[str, Any]) -> api.LLMDeployment:
    """The LLMDeployment as the API server would keep it.

    Raises:
        RefusedError: It would not.
    """
    manifest = {
        "apiVersion": api.API_VERSION,
        "kind": api.KIND,
        "metadata": {"name": "x"},
        "spec": spec,
    }
    return api.LLMDeployment.parse(server.create(manifest))


def rendered(cr: api.LLMDeployment) -> tuple[hardware.Decision, list[Body]]:
    """What the operator makes of it: the hardware chosen and why, and all objects.

    Raises:
        validity.InvalidSpecError: It says what is wrong.
    """
    cr = validity.resolve(cr, PROFILES)
    decision = hardware.choose(cr.spec, previous=None, gpu_image=True, nodes=None)
    image = images.reference(cr.spec.image, RUNTIME, decision.target)
    assert image is not None
    template = podtemplate.template("x", cr.spec, podtemplate.Choices(decision.target, image))
    return decision, render.objects(cr, template, operator_namespace="operators")


def pod(deployment: Body) -> Body:
    """A pod of the Deployment."""
    template = deployment["spec"]["template"]
    spec = {name: value for name, value in template["spec"].items() if name not in LOOKED_UP}
    metadata = {"name": "x", **template["metadata"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


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
    assert {resource.kind for resource in kube.OWNED} <= outcomes.keys(), outcomes


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
# Said aloud it is what it would be anyway: it has no two values.
DEFAULT = {"model.source.preloaded"}


@pytest.mark.parametrize("path", sorted({*specs.leaves()} - DEFAULT))
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
