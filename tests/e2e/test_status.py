"""What is in the way of a model stands in its status, with the evidence, until it is mended.

Everything that can be provoked at once is, in one namespace, so that the waits of all are one.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dev.cluster import checks, fake_nodes
from dev.cluster.gpu import Gpus
from dev.stand_ins.cache import models
from tests.e2e.conftest import served_namespace
from tests.e2e.harness import (
    KIND,
    MODEL,
    ON_FAKE_NODES,
    CommandError,
    Kubectl,
    condition,
    eventually,
    llm_deployment,
)

Json = dict[str, Any]

NO_SUCH_IMAGE = "localhost:1/no-such-image:v1"
RESOURCE = "example.com/accelerator"
"""A resource that no node has."""
QUOTED_RESOURCE = "example.com/rationed"
REFUSED_LABEL = "example.com/refused"
"""A label of pods that a policy refuses."""
BINDING = "requiredDuringSchedulingIgnoredDuringExecution"


@dataclass(frozen=True)
class Trouble:
    """Something in the way, and how it is told.

    Attributes:
        spec: Fields of a spec that meets it.
        reason: of the condition Ready.
        words: The evidence in its message.
        stalled: Whether waiting does not mend it.
        mended_by_objects: Whether objects that are added mend it; else a change of the spec does.
    """

    spec: Json
    reason: str
    words: tuple[str, ...]
    stalled: bool = False
    mended_by_objects: bool = False


def source(claim: str, path: str = MODEL) -> Json:
    """A model on a volume."""
    return {"id": MODEL, "source": {"persistentVolumeClaim": {"claimName": claim, "path": path}}}


def of_secret(name: str) -> Json:
    """An environment variable from a Secret."""
    return {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": name, "key": "token"}}}


def api_keys(name: str) -> Json:
    """API keys from a Secret."""
    return {"apiKeySecret": {"name": name, "key": "keys"}}


TROUBLES = {
    "no-gpu": Trouble(
        {"target": "gpu", "gpu": {"resourceName": RESOURCE}},
        "Unschedulable",
        (f"Insufficient {RESOURCE}",),
    ),
    "too-much-cpu": Trouble(
        {"resources": {"requests": {"cpu": "4000"}}}, "Unschedulable", ("Insufficient cpu",)
    ),
    "over-quota": Trouble(
        {"target": "gpu", "gpu": {"resourceName": QUOTED_RESOURCE}},
        "QuotaExceeded",
        ("exceeded quota: rationed", f"requests.{QUOTED_RESOURCE}=1"),
    ),
    "against-policy": Trouble(
        {"podLabels": {REFUSED_LABEL: "true"}},
        "PodCreationFailed",
        ("pods are forbidden: ValidatingAdmissionPolicy", f"no pod is {REFUSED_LABEL}"),
    ),
    "no-image": Trouble(
        {"image": {"cpu": NO_SUCH_IMAGE}},
        "ImagePullFailed",
        (NO_SUCH_IMAGE, "connection refused"),
        stalled=True,
    ),
    "no-pull-secret": Trouble(
        {"image": {"cpu": NO_SUCH_IMAGE, "pullSecrets": [{"name": "registry"}]}},
        "ImagePullFailed",
        (NO_SUCH_IMAGE, "Unable to retrieve some image pull secrets (registry)"),
        stalled=True,
    ),
    "no-claim": Trouble(
        {"model": source("missing")},
        "VolumeNotReady",
        ('persistentvolumeclaim "missing" not found',),
    ),
    "no-volume": Trouble(
        {"model": source("pending")},
        "VolumeNotReady",
        ("unbound immediate PersistentVolumeClaims",),
        mended_by_objects=True,
    ),
    "no-secret-volume": Trouble(
        {"server": api_keys("keys")},
        "VolumeNotReady",
        ('volume "api-keys"', 'secret "keys" not found'),
        mended_by_objects=True,
    ),
    "no-secret": Trouble(
        {"server": {"env": [of_secret("tokens")]}},
        "CreateContainerConfigError",
        ('secret "tokens" not found',),
        mended_by_objects=True,
    ),
    "no-profile": Trouble(
        {"hardwareProfile": "nonesuch"},
        "InvalidSpec",
        ("hardwareProfile", "no profile nonesuch"),
        stalled=True,
    ),
    "unknown-affinity": Trouble(
        {"affinity": {"podAntiAffinity": {"requiredDuringScheduling": []}}},
        "InvalidSpec",
        ("podAntiAffinity.requiredDuringScheduling", "field not declared in schema"),
        stalled=True,
    ),
    "wrong-affinity": Trouble(
        {"affinity": {"podAntiAffinity": {BINDING: [{"labelSelector": {}}]}}},
        "InvalidSpec",
        (f"affinity.podAntiAffinity.{BINDING}[0].topologyKey", "Required value"),
        stalled=True,
    ),
    "one-node-claim": Trouble(
        {"model": source("pending"), "replicas": 2},
        "InvalidSpec",
        ("PersistentVolumeClaim pending", "ReadWriteOnce", "2 replicas", "ReadWriteMany"),
        stalled=True,
    ),
    "no-api-key": Trouble(
        {"server": api_keys("empty")},
        "InvalidSpec",
        ("LLM_API_KEYS_FILE", "no API key"),
        stalled=True,
    ),
    "broken-weights": Trouble(
        {"model": source("broken", path="truncated")},
        "ModelLoadFailed",
        ("the model in /model", "is not the whole file"),
        stalled=True,
    ),
    "little-memory": Trouble(
        # Less than the server takes before it looks at the model and says what is missing.
        {"resources": {"limits": {"memory": "32Mi"}}},
        "OutOfMemory",
        ("before it served", "limit of 32Mi", "raise resources.limits.memory"),
        stalled=True,
    ),
    "little-time": Trouble(
        {"resources": {"limits": {"cpu": "100m"}}, "probes": {"startupBudgetSeconds": 5}},
        "StartupBudgetExceeded",
        ("within 5 s", "raise probes.startupBudgetSeconds"),
        stalled=True,
    ),
    "crash": Trouble(
        # Python ends before a line of the server runs.
        {"server": {"env": [{"name": "PYTHONHOME", "value": "/nowhere"}]}},
        "CrashLooping",
        ("stopped with exit code 1",),
        stalled=True,
    ),
    "lost": Trouble({}, "NodeLost", ("does not answer",)),
}
MENDED_BY_SPEC = sorted(name for name, each in TROUBLES.items() if not each.mended_by_objects)
MENDED_BY_OBJECTS = sorted(name for name, each in TROUBLES.items() if each.mended_by_objects)


@dataclass(frozen=True)
class Lab:
    """Where everything is provoked.

    Attributes:
        kubectl: in the namespace.
        fake_node: A node whose pods are ready at once.
        lost_node: One that went silent.
        since: When the last trouble was made, by `time.monotonic`.
    """

    kubectl: Kubectl
    fake_node: str
    lost_node: str
    since: float

    def get(self, name: str) -> Json:
        """One LLMDeployment."""
        return self.kubectl.json("get", KIND, name)

    def on_fake_node(self, name: str, **spec: Any) -> Json:
        """An LLMDeployment whose pods are ready without a process behind them."""
        return llm_deployment(name, **(ON_FAKE_NODES | on_node(self.fake_node) | spec))


def on_node(name: str) -> Json:
    """Fields of a spec whose pods land on one node."""
    return {"nodeSelector": {"kubernetes.io/hostname": name}}


def fake_node(name: str) -> Json:
    """A node of these tests alone, with a resource that a quota rations."""
    node = fake_nodes.manifest(0, Gpus(count=0))
    node["metadata"]["name"] = node["metadata"]["labels"]["kubernetes.io/hostname"] = name
    for amounts in ("capacity", "allocatable"):
        node["status"][amounts] = node["status"][amounts] | {QUOTED_RESOURCE: "1"}
    return node


def volume(name: str, folder: Path, claim: str, namespace: str) -> Json:
    """A PersistentVolume for one claim."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "labels": {"made-for": namespace}},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": namespace,
            "claimRef": {"namespace": namespace, "name": claim},
            "hostPath": {"path": str(folder), "type": "Directory"},
        },
    }


def claim(name: str, namespace: str) -> Json:
    """A PersistentVolumeClaim."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": namespace,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


def secret(name: str, **data: str) -> Json:
    """A Secret."""
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


QUOTA = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "rationed"},
    "spec": {"hard": {f"requests.{QUOTED_RESOURCE}": "0"}},
}


def policy(name: str) -> list[Json]:
    """A ValidatingAdmissionPolicy that refuses some pods of the namespace of this name."""
    of_group = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": name}}
    pods = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"]}
    validation = {
        "expression": "!has(object.metadata.labels)"
        f" || !('{REFUSED_LABEL}' in object.metadata.labels)",
        "message": f"no pod is {REFUSED_LABEL}",
    }
    here = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
    return [
        of_group
        | {
            "kind": "ValidatingAdmissionPolicy",
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [pods | {"resources": ["pods"]}]},
                "validations": [validation],
            },
        },
        of_group
        | {
            "kind": "ValidatingAdmissionPolicyBinding",
            "spec": {"policyName": name, "validationActions": ["Deny"], "matchResources": here},
        },
    ]


def refuse_pods(kubectl: Kubectl) -> None:
    """Make the policy, and wait until it holds."""
    kubectl.apply(*policy(kubectl.namespace))
    container = {
        "name": "tried",
        "image": NO_SUCH_IMAGE,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "tried", "labels": {REFUSED_LABEL: "true"}},
        "spec": {"containers": [container]},
    }

    def refused() -> bool:
        try:
            kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
        except CommandError as error:
            return "ValidatingAdmissionPolicy" in str(error)
        return False

    eventually(refused, within=60)


@pytest.fixture(scope="module")
def broken_model() -> Iterator[Path]:
    """A folder with a model whose weights end early, readable for pods."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "truncated"
        shutil.copytree(models() / MODEL, model, ignore=shutil.ignore_patterns("*.safetensors"))
        with (models() / MODEL / "model.safetensors").open("rb") as whole:
            (model / "model.safetensors").write_bytes(whole.read(1_000_000))
        for path in (Path(folder), model):
            path.chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def lab(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    broken_model: Path,
) -> Iterator[Lab]:
    """A namespace with all the troubles."""
    with served_namespace(request, tmp_path_factory.mktemp("operator")) as kubectl:
        namespace = kubectl.namespace
        nodes = [f"{namespace}-a", f"{namespace}-lost"]
        listed = {"apiVersion": "v1", "kind": "List", "items": [fake_node(name) for name in nodes]}
        kubectl("create", "-f", "-", stdin=json.dumps(listed))
        try:
            lose(kubectl, nodes[1])
            refuse_pods(kubectl)
            kubectl.apply(
                QUOTA,
                secret("empty", keys=""),
                claim("pending", namespace),
                claim("broken", namespace),
                volume(f"{namespace}-broken", broken_model, "broken", namespace),
            )
            kubectl.apply(
                *(
                    llm_deployment(name, **({"target": "cpu"} | trouble.spec))
                    for name, trouble in TROUBLES.items()
                    if name != "lost"
                )
            )
            yield Lab(kubectl, *nodes, since=time.monotonic())
        finally:
            kubectl("delete", KIND, "--all")
            kubectl("delete", "persistentvolume", "-l", f"made-for={namespace}", "--wait=false")
            kubectl("delete", "pods", "--all", "--force", "--grace-period=0")
            kubectl("delete", "node", *nodes)
            for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
                kubectl("delete", kind, namespace, "--ignore-not-found")


def lose(kubectl: Kubectl, node: str) -> None:
    """Have a pod serve on a fake node, and then nobody speak for that node any more."""
    kubectl("wait", "--for=condition=Ready", f"node/{node}", "--timeout=60s")
    kubectl.apply(llm_deployment("lost", target="cpu", **(ON_FAKE_NODES | on_node(node))))
    kubectl.wait_ready("lost", timeout=60)
    kubectl("label", "node", node, "type=silent", "--overwrite")


@pytest.mark.parametrize("name", TROUBLES)
def test_what_is_in_the_way_is_told_with_its_evidence(lab: Lab, name: str):
    trouble = TROUBLES[name]

    def told() -> bool:
        resource = lab.get(name)
        ready = condition(resource, "Ready")
        assert (ready.get("status"), ready.get("reason")) == ("False", trouble.reason), ready
        assert [word for word in trouble.words if word not in ready["message"]] == [], ready
        other = condition(resource, "Stalled" if trouble.stalled else "Reconciling")
        assert {**other, "type": "Ready", "status": "False"} == ready | {
            "lastTransitionTime": other.get("lastTransitionTime")
        }
        assert not condition(resource, "Reconciling" if trouble.stalled else "Stalled")
        verdict = checks.status(resource)
        assert verdict["status"] == ("Failed" if trouble.stalled else "InProgress"), verdict
        return True

    eventually(told, within=150)


def test_the_last_line_of_a_server_that_crashes_is_quoted(lab: Lab):
    def quoted() -> bool:
        (pod,) = lab.kubectl.pods_of("crash")
        state = pod["status"]["containerStatuses"][0]
        ended = state["state"].get("terminated") or state["lastState"]["terminated"]
        line = ended["message"].strip().splitlines()[-1].strip()
        assert line
        message: str = condition(lab.get("crash"), "Ready")["message"]
        return message.endswith(f"exit code 1: {line}")

    eventually(quoted, within=60)


def test_the_node_that_does_not_answer_is_named(lab: Lab):
    assert f"its node {lab.lost_node} does" in condition(lab.get("lost"), "Ready")["message"]


def test_what_stays_in_the_way_is_not_written_again_and_again(lab: Lab, audit_log: Path):
    """The kubelet and the scheduler try again every few seconds, and say so each time."""
    time.sleep(max(0.0, 75 - (time.monotonic() - lab.since)))
    writes: dict[str, int] = dict.fromkeys(TROUBLES, 0)
    with audit_log.open() as lines:
        for line in lines:
            if f"/namespaces/{lab.kubectl.namespace}/llmdeployments/" not in line:
                continue
            event = json.loads(line)
            path = event["requestURI"].partition("?")[0]
            if path.endswith("/status") and event["stage"] == "ResponseComplete":
                writes[path.split("/")[-2]] += 1
    assert min(writes.values()) > 0, "the audit log does not show all writes"
    assert {name: count for name, count in writes.items() if count > 7} == {}


@pytest.fixture(scope="module")
def mended(lab: Lab) -> Lab:
    """The namespace with every trouble mended, by a change of the spec or from outside."""
    namespace = lab.kubectl.namespace
    lab.kubectl.apply(
        secret("keys", keys="sesame"),
        secret("tokens", token="sesame"),
        volume(f"{namespace}-models", models(), "pending", namespace),
    )
    lab.kubectl.apply(*(lab.on_fake_node(name, target="cpu") for name in MENDED_BY_SPEC))
    return lab


@pytest.mark.parametrize("name", [*MENDED_BY_SPEC, *MENDED_BY_OBJECTS])
def test_what_is_mended_serves_and_nothing_is_left_of_the_trouble(mended: Lab, name: str):
    mended.kubectl.wait_ready(name, timeout=180)

    def current() -> bool:
        resource = mended.get(name)
        conditions = resource["status"]["conditions"]
        assert len(conditions) == 1, conditions
        (ready,) = conditions
        assert (ready["type"], ready["reason"]) == ("Ready", "ModelServing")
        assert ready["message"] == f"1 of 1 replicas serve {MODEL}"
        return checks.status(resource)["status"] == "Current"

    eventually(current, within=60)
