"""The objects as rendered. The files in golden/ hold pod templates as released: a difference there
restarts every pod of every user, so it is a decision, not a detail. Run with --update-golden to
write them after that decision.
"""

import json
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from llm_operator import api, render
from llm_operator.fields import LocalReference
from llm_operator.schema import structural

GOLDEN = Path(__file__).with_name("golden")

CASES = {
    "minimal-cpu": ("cpu", {}),
    "minimal-gpu": ("gpu", {}),
    "full-cpu": (
        "cpu",
        {
            "model": {
                "revision": "main",
                "servedName": "chat",
                "task": "generate",
                "dtype": "bfloat16",
                "maxLength": 2048,
                "source": {"persistentVolumeClaim": {"claimName": "models", "path": "smollm2"}},
            },
            "image": {"pullPolicy": "Always", "pullSecrets": [{"name": "registry"}]},
            "replicas": 3,
            "resources": {
                "requests": {"cpu": 1, "memory": "1Gi"},
                "limits": {"cpu": 2, "memory": "2Gi"},
            },
            "nodeSelector": {"pool": "cpu"},
            "tolerations": [{"key": "team", "value": "llm", "effect": "NoSchedule"}],
            "affinity": {
                "podAntiAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": [
                        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {}}
                    ]
                }
            },
            "priorityClassName": "high",
            "serviceAccountName": "models",
            "server": {
                "maxConcurrency": 8,
                "maxQueue": 0,
                "requestTimeoutSeconds": 60,
                "drainSeconds": 120,
                "logLevel": "debug",
                "env": [
                    {"name": "OMP_PROC_BIND", "value": "true"},
                    {
                        "name": "NODE",
                        "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}},
                    },
                ],
            },
            "probes": {
                "startupBudgetSeconds": 1000,
                "startupPeriodSeconds": 3,
                "readinessPeriodSeconds": 5,
                "livenessPeriodSeconds": 20,
            },
        },
    ),
    "full-gpu": (
        "gpu",
        {
            "model": {
                "source": {
                    "image": {"reference": "registry/weights:1", "pullPolicy": "IfNotPresent"}
                }
            },
            "target": "gpu",
            "gpu": {
                "count": 2,
                "products": ["NVIDIA-H100-80GB-HBM3"],
                "minMemory": "79Gi",
                "runtimeClassName": "nvidia",
            },
            "tolerations": [{"key": "spot", "operator": "Exists"}],
        },
    ),
}


def rendered(cr, target):
    deployment = render.deployment(cr, target=target, image=f"registry/llm:{target}")
    return deployment, render.service(cr)


@pytest.mark.parametrize("case", CASES)
def test_golden(case, make, request):
    target, spec = CASES[case]
    text = yaml.safe_dump_all(rendered(make(**spec), target), sort_keys=False)
    path = GOLDEN / f"{case}.yaml"
    if request.config.getoption("--update-golden"):
        path.write_text(text)
    assert path.read_text() == text


@pytest.mark.parametrize("case", CASES)
def test_kubernetes_knows_every_field(case, make):
    target, spec = CASES[case]
    for manifest in rendered(make(**spec), target):
        kubernetes_validate.validate(manifest, "1.37", strict=True)


@pytest.mark.parametrize("case", CASES)
def test_pods_pass_pod_security_restricted(case, make):
    target, spec = CASES[case]
    pod = rendered(make(**spec), target)[0]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    allowed = {"emptyDir", "persistentVolumeClaim", "image"}
    assert all(volume.keys() - {"name"} <= allowed for volume in pod["volumes"])


def test_the_template_does_not_depend_on_replicas_or_anything_outside_of_the_spec(make):
    one, _ = rendered(make(replicas=1), "cpu")
    two, _ = rendered(make(replicas=2), "cpu")
    assert one["spec"]["template"] == two["spec"]["template"]
    assert render.template_digest(one) == render.template_digest(two)


def test_the_digest_names_the_template(make):
    base, _ = rendered(make(), "cpu")
    other, _ = rendered(make(server={"maxQueue": 1}), "cpu")
    assert render.template_digest(base) != render.template_digest(other)
    assert render.template_digest({}) is None


def test_the_operators_defaults_for_images_give_way_to_the_spec(make):
    ours = (LocalReference(name="default"),)

    def pod(cr):
        manifest = render.deployment(
            cr, target="cpu", image="i", pull_policy="Never", pull_secrets=ours
        )
        return manifest["spec"]["template"]["spec"]

    default = pod(make())
    assert default["imagePullSecrets"] == [{"name": "default"}]
    assert default["containers"][0]["imagePullPolicy"] == "Never"
    own = pod(make(image={"pullPolicy": "Always", "pullSecrets": [{"name": "mine"}]}))
    assert own["imagePullSecrets"] == [{"name": "mine"}]
    assert own["containers"][0]["imagePullPolicy"] == "Always"


@pytest.mark.parametrize(("budget", "period", "failures"), [(600, 1, 600), (10, 3, 4), (1, 300, 1)])
def test_the_startup_budget_is_never_cut_short(make, budget, period, failures):
    probes = {"startupBudgetSeconds": budget, "startupPeriodSeconds": period}
    container = rendered(make(probes=probes), "cpu")[0]["spec"]["template"]["spec"]["containers"][0]
    assert container["startupProbe"]["failureThreshold"] == failures


def test_threads_follow_the_cpu_limit(make):
    limited = json.dumps(rendered(make(resources={"limits": {"cpu": 2}}), "cpu")[0])
    assert "LLM_THREADS" in limited
    assert "LLM_THREADS" not in json.dumps(rendered(make(), "cpu")[0])


# For every field of the spec a value that differs from its default.
OTHERWISE = {
    "model.id": "other/model",
    "model.revision": "v2",
    "model.servedName": "chat",
    "model.task": "embed",
    "model.dtype": "float32",
    "model.maxLength": 77,
    "model.source.image.reference": "weights:1",
    "model.source.image.pullPolicy": "Always",
    "model.source.persistentVolumeClaim.claimName": "claim",
    "model.source.persistentVolumeClaim.path": "some/where",
    "image.pullPolicy": "Never",
    "image.pullSecrets": [{"name": "secret"}],
    "gpu.count": 3,
    "gpu.resourceName": "example.com/npu",
    "gpu.products": ["A"],
    "gpu.minMemory": "1G",
    "gpu.runtimeClassName": "nvidia",
    "replicas": 5,
    "resources.requests": {"cpu": 1},
    "resources.limits": {"memory": "1Gi"},
    "nodeSelector": {"a": "b"},
    "tolerations": [{"operator": "Exists"}],
    "affinity.nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []},
    "affinity.podAffinity": {"x": []},
    "affinity.podAntiAffinity": {"x": []},
    "priorityClassName": "high",
    "serviceAccountName": "sa",
    "server.maxConcurrency": 3,
    "server.maxQueue": 3,
    "server.requestTimeoutSeconds": 3,
    "server.drainSeconds": 3,
    "server.logLevel": "error",
    "server.env": [{"name": "A", "value": "b"}],
    "probes.startupBudgetSeconds": 3,
    "probes.startupPeriodSeconds": 3,
    "probes.readinessPeriodSeconds": 3,
    "probes.livenessPeriodSeconds": 3,
}
# What these need beside them to be accepted.
COMPANIONS = {
    "model.source.image.pullPolicy": {"model.source.image.reference": "weights:1"},
    "model.source.persistentVolumeClaim.path": {
        "model.source.persistentVolumeClaim.claimName": "claim"
    },
}
# Which hardware and image is decided elsewhere and tested there.
DECIDED_BEFORE = {
    "target",
    "image.repository",
    "image.tag",
    "image.cpu",
    "image.gpu",
    "model.source.preloaded",
}


def leaves(node, path=""):
    for name, child in node["properties"].items():
        if child.get("properties"):
            yield from leaves(child, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def nested(values):
    spec = {}
    for path, value in values.items():
        *parents, last = path.split(".")
        inner = spec
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return spec


def test_every_field_has_a_case():
    assert set(leaves(structural(api.LLMDeploymentSpec))) == OTHERWISE.keys() | DECIDED_BEFORE


@pytest.mark.parametrize("field", OTHERWISE)
def test_no_field_is_silent(field, make):
    companions = COMPANIONS.get(field, {})
    base = rendered(make(**nested(companions)), "gpu")
    assert rendered(make(**nested({**companions, field: OTHERWISE[field]})), "gpu") != base
