"""The objects as rendered. The files in golden/ hold pod templates as released: a difference there
restarts every pod of every user, so it is a decision, not a detail. Run with --update-golden to
write them after that decision.
"""

import json
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from pydantic.alias_generators import to_snake

from llm_inference.settings import load_settings
from llm_operator import api, podtemplate, render
from llm_operator.fields import LocalReference
from llm_operator.podtemplate import Choices
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
                "quantization": "int8",
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
            "topologySpreadConstraints": [
                {
                    "maxSkew": 2,
                    "topologyKey": "rack",
                    "whenUnsatisfiable": "DoNotSchedule",
                    "matchLabelKeys": ["pod-template-hash"],
                }
            ],
            "priorityClassName": "high",
            "schedulerName": "packer",
            "serviceAccountName": "models",
            "podLabels": {"team": "chat"},
            "podAnnotations": {"sidecar.istio.io/inject": "false"},
            "rollout": {"strategy": "RollingUpdate", "maxSurge": "50%", "maxUnavailable": 1},
            "service": {"type": "NodePort", "port": 8000, "annotations": {"a": "b"}},
            "networkPolicy": {
                "ingressFrom": [{"podSelector": {}}],
                "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
            },
            "monitoring": {"enabled": True, "interval": "10s", "labels": {"release": "prom"}},
            "server": {
                "apiKeySecret": {"name": "keys", "key": "chat"},
                "envFrom": [{"prefix": "P_", "configMapRef": {"name": "extra"}}],
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
            "autoscaling": {"maxReplicas": 3, "metric": {"type": "waitingRequests", "target": 4}},
            "rollout": {"strategy": "Recreate"},
        },
    ),
    "hub-cpu": (
        "cpu",
        {
            "model": {
                "source": {
                    "hub": {
                        "endpoint": "http://mirror.example:8000",
                        "tokenSecret": {"name": "hub", "key": "token"},
                        "cache": {"size": "10Gi", "storageClassName": "fast"},
                    }
                }
            },
            "autoscaling": {
                "minReplicas": 0,
                "maxReplicas": 3,
                "metric": {
                    "type": "prometheus",
                    "target": 4,
                    "serverAddress": "http://prometheus.monitoring",
                    "query": "sum(waiting)",
                },
            },
        },
    ),
}


def rendered(cr, target, *, config_digest=None, **options):
    choices = Choices(target, f"registry/llm:{target}", config_digest=config_digest)
    template = podtemplate.template(cr.metadata.name, cr.spec, choices)
    return render.objects(cr, template, operator_namespace="operators", **options)


def pod_of(manifests):
    return manifests[0]["spec"]["template"]["spec"]


def of_kind(manifests, kind):
    return next((each for each in manifests if each["kind"] == kind), None)


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
        if manifest["kind"] not in {"PodMonitor", "ScaledObject"}:
            kubernetes_validate.validate(manifest, "1.37", strict=True)


@pytest.mark.parametrize("case", CASES)
def test_pods_pass_pod_security_restricted(case, make):
    target, spec = CASES[case]
    pod = pod_of(rendered(make(**spec), target))
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
    allowed = {"emptyDir", "persistentVolumeClaim", "image", "secret", "ephemeral"}
    assert all(volume.keys() - {"name"} <= allowed for volume in pod["volumes"])


def digest(manifests):
    return podtemplate.digest_of(manifests[0]["spec"]["template"])


def test_the_template_does_not_depend_on_replicas_or_anything_outside_of_the_spec(make):
    one = rendered(make(replicas=1), "cpu")
    two = rendered(make(replicas=2, suspend=True), "cpu", in_place=True)
    assert one[0]["spec"]["template"] == two[0]["spec"]["template"]
    assert digest(one) == digest(two)


def test_the_digest_names_the_template(make):
    base = rendered(make(), "cpu")
    other = rendered(make(server={"maxQueue": 1}), "cpu")
    assert digest(base) != digest(other)
    assert podtemplate.digest_of({}) is None


def test_what_pods_read_when_they_start_is_part_of_the_template(make):
    base = rendered(make(), "cpu")
    one, two = (rendered(make(), "cpu", config_digest=each) for each in ("one", "two"))
    assert len({digest(base), digest(one), digest(two)}) == 3


def test_the_operators_defaults_for_images_give_way_to_the_spec(make):
    def pod(cr):
        ours = (LocalReference(name="default"),)
        choices = Choices("cpu", "i", pull_policy="Never", pull_secrets=ours)
        return podtemplate.template("x", cr.spec, choices)["spec"]

    default = pod(make())
    assert default["imagePullSecrets"] == [{"name": "default"}]
    assert default["containers"][0]["imagePullPolicy"] == "Never"
    own = pod(make(image={"pullPolicy": "Always", "pullSecrets": [{"name": "mine"}]}))
    assert own["imagePullSecrets"] == [{"name": "mine"}]
    assert own["containers"][0]["imagePullPolicy"] == "Always"


def test_a_selector_of_everything_stays_one(make):
    spread = {"topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
    (constraint,) = pod_of(rendered(make(topologySpreadConstraints=[spread]), "cpu"))[
        "topologySpreadConstraints"
    ]
    assert constraint["labelSelector"] == {}  # without one no pod would be counted


def test_suspended_nothing_runs_and_nothing_scales(make):
    cr = make(replicas=3, suspend=True, autoscaling={"maxReplicas": 3})
    manifests = rendered(cr, "cpu")
    assert manifests[0]["spec"]["replicas"] == 0
    assert [each["kind"] for each in manifests] == ["Deployment", "Service", "NetworkPolicy"]


@pytest.mark.parametrize(("replicas", "there"), [(0, False), (1, False), (2, True)])
def test_a_single_pod_has_no_budget_that_would_keep_its_node_from_being_drained(
    make, replicas, there
):
    budget = of_kind(rendered(make(replicas=replicas), "cpu"), "PodDisruptionBudget")
    assert (budget is not None) is there


def test_autoscalers_scale_the_llmdeployment_itself(make):
    cr = make(autoscaling={"maxReplicas": 3})
    target = of_kind(rendered(cr, "cpu"), "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target == {"apiVersion": api.API_VERSION, "kind": api.KIND, "name": "smollm2"}


def test_a_preloaded_model_opens_no_connection(make):
    policy = of_kind(rendered(make(), "cpu"), "NetworkPolicy")["spec"]
    assert policy["egress"] == []
    assert policy["policyTypes"] == ["Ingress", "Egress"]


@pytest.mark.parametrize(
    ("endpoint", "ports"),
    [
        (None, [443]),
        ("https://hub.example", [443]),
        ("http://hub.example", [80, 443]),
        ("http://hub.example:8000", [443, 8000]),
    ],
)
def test_a_hub_is_reached_by_name_and_port(make, endpoint, ports):
    hub = {"endpoint": endpoint} if endpoint else {}
    cr = make(model={"source": {"hub": hub}})
    dns, hub = of_kind(rendered(cr, "cpu"), "NetworkPolicy")["spec"]["egress"]
    assert [each["port"] for each in dns["ports"]] == [53, 53]
    assert [each["port"] for each in hub["ports"]] == ports


def test_the_operator_may_always_ask_a_pod(make):
    cr = make(networkPolicy={"ingressFrom": [{"podSelector": {}}]})
    (rule,) = of_kind(rendered(cr, "cpu"), "NetworkPolicy")["spec"]["ingress"]
    users, operator = rule["from"]
    assert users == {"podSelector": {}}
    assert operator["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": "operators"
    }


@pytest.mark.parametrize(
    ("rollout", "in_place", "update"),
    [
        ({}, False, {"maxSurge": 1, "maxUnavailable": 0}),
        ({}, True, {"maxSurge": 0, "maxUnavailable": 1}),
        ({"strategy": "RollingUpdate"}, False, {"maxSurge": 1, "maxUnavailable": 0}),
        (
            {"strategy": "RollingUpdate", "maxSurge": 0},
            False,
            {"maxSurge": 0, "maxUnavailable": 1},
        ),
        (
            {"strategy": "RollingUpdate", "maxSurge": "50%", "maxUnavailable": "25%"},
            False,
            {"maxSurge": "50%", "maxUnavailable": "25%"},
        ),
        ({"strategy": "Recreate"}, True, None),
    ],
)
def test_rollout(make, rollout, in_place, update):
    manifest = rendered(make(rollout=rollout), "gpu", in_place=in_place)[0]
    assert manifest["spec"]["strategy"].get("rollingUpdate") == update


@pytest.mark.parametrize(("budget", "period", "failures"), [(600, 1, 600), (10, 3, 4), (1, 300, 1)])
def test_the_startup_budget_is_never_cut_short(make, budget, period, failures):
    probes = {"startupBudgetSeconds": budget, "startupPeriodSeconds": period}
    (container,) = pod_of(rendered(make(probes=probes), "cpu"))["containers"]
    assert container["startupProbe"]["failureThreshold"] == failures


def test_threads_follow_the_cpu_limit(make):
    limited = json.dumps(rendered(make(resources={"limits": {"cpu": 2}}), "cpu")[0])
    assert "LLM_THREADS" in limited
    assert "LLM_THREADS" not in json.dumps(rendered(make(), "cpu")[0])


def bounds(node):
    """The values at the edges of what a field may say."""
    return node.get("enum") or [node["minimum"], node["maximum"]]


SERVER = structural(api.LLMDeploymentSpec)["properties"]["server"]["properties"]
BOUNDED = {name: bounds(node) for name, node in SERVER.items() if {"enum", "minimum"} & {*node}}


@pytest.mark.parametrize("edge", [0, -1])
def test_the_server_takes_whatever_its_fields_may_say(make, monkeypatch, edge):
    cr = make(server={name: values[edge] for name, values in BOUNDED.items()})
    (container,) = pod_of(rendered(cr, "cpu"))["containers"]
    said = {each["name"]: each["value"] for each in container["env"]}
    assert len(BOUNDED) == 11
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    taken = load_settings(said).model_dump()
    for name, values in BOUNDED.items():
        assert taken[to_snake(name)] == values[edge]


VERBATIM = {
    "requiredDuringSchedulingIgnoredDuringExecution": [
        {
            "topologyKey": "kubernetes.io/hostname",
            "labelSelector": {},
            "namespaceSelector": {},
            "namespaces": [],
            "matchLabelKeys": ["pod-template-hash"],
            "mismatchLabelKeys": ["team"],
            "of a later version": None,
        }
    ],
}


@pytest.mark.parametrize("member", ["podAffinity", "podAntiAffinity"])
def test_affinity_to_pods_is_passed_on_word_for_word(make, member):
    pod = pod_of(rendered(make(affinity={member: VERBATIM}), "cpu"))
    assert pod["affinity"] == {member: VERBATIM}


def test_nodes_may_be_named(make):
    name = {"key": "metadata.name", "operator": "In", "values": ["n"]}
    required = {"nodeSelectorTerms": [{"matchFields": [name]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    assert pod_of(rendered(make(affinity=affinity), "cpu"))["affinity"] == affinity


# For every field of the spec a value that differs from its default.
OTHERWISE = {
    "model.id": "other/model",
    "model.revision": "v2",
    "model.servedName": "chat",
    "model.task": "embed",
    "model.dtype": "float32",
    "model.quantization": "int8",
    "model.maxLength": 77,
    "model.source.image.reference": "weights:1",
    "model.source.image.pullPolicy": "Always",
    "model.source.persistentVolumeClaim.claimName": "claim",
    "model.source.persistentVolumeClaim.path": "some/where",
    "model.source.hub.endpoint": "http://hub.example",
    "model.source.hub.tokenSecret.name": "token",
    "model.source.hub.tokenSecret.key": "other",
    "model.source.hub.cache.claimName": "claim",
    "model.source.hub.cache.size": "1Gi",
    "model.source.hub.cache.storageClassName": "fast",
    "image.pullPolicy": "Never",
    "image.pullSecrets": [{"name": "secret"}],
    "gpu.count": 3,
    "gpu.resourceName": "example.com/npu",
    "gpu.products": ["A"],
    "gpu.minMemory": "1G",
    "gpu.runtimeClassName": "nvidia",
    "replicas": 5,
    "autoscaling.minReplicas": 2,
    "autoscaling.maxReplicas": 9,
    "autoscaling.metric.type": "runningRequests",
    "autoscaling.metric.target": 9,
    "autoscaling.metric.serverAddress": "http://other",
    "autoscaling.metric.query": "other",
    "autoscaling.scaleDownDelaySeconds": 9,
    "suspend": True,
    "resources.requests": {"cpu": 1},
    "resources.limits": {"memory": "1Gi"},
    "nodeSelector": {"a": "b"},
    "tolerations": [{"operator": "Exists"}],
    "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms": [{}],
    "affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution": [],
    "affinity.podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []},
    "affinity.podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []},
    "topologySpreadConstraints": [],
    "priorityClassName": "high",
    "schedulerName": "packer",
    "serviceAccountName": "sa",
    "rollout.strategy": "Recreate",
    "rollout.maxSurge": 2,
    "rollout.maxUnavailable": 2,
    "service.type": "LoadBalancer",
    "service.port": 81,
    "service.annotations": {"a": "b"},
    "networkPolicy.enabled": False,
    "networkPolicy.ingressFrom": [{"podSelector": {}}],
    "networkPolicy.egress": [{}],
    "monitoring.enabled": True,
    "monitoring.interval": "7s",
    "monitoring.labels": {"a": "b"},
    "podLabels": {"a": "b"},
    "podAnnotations": {"a": "b"},
    "server.maxConcurrency": 3,
    "server.maxQueue": 3,
    "server.maxQueueTokens": 3,
    "server.maxBodyBytes": 2048,
    "server.requestTimeoutSeconds": 3,
    "server.receiveTimeoutSeconds": 3,
    "server.stepTimeoutSeconds": 3,
    "server.streamCommentSeconds": 3,
    "server.drainSeconds": 3,
    "server.logLevel": "error",
    "server.logFormat": "text",
    "server.env": [{"name": "A", "value": "b"}],
    "server.envFrom": [{"secretRef": {"name": "a"}}],
    "server.apiKeySecret.name": "keys",
    "server.apiKeySecret.key": "other",
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
    **{
        f"model.source.hub.tokenSecret.{name}": {
            "model.source.hub.tokenSecret.name": "a",
            "model.source.hub.tokenSecret.key": "a",
        }
        for name in ("name", "key")
    },
    "model.source.hub.cache.storageClassName": {"model.source.hub.cache.size": "2Gi"},
    **{
        f"autoscaling.{name}": {"autoscaling.maxReplicas": 5}
        for name in ("minReplicas", "maxReplicas", "metric.type", "metric.target")
    },
    "autoscaling.scaleDownDelaySeconds": {"autoscaling.maxReplicas": 5},
    **{
        f"autoscaling.metric.{name}": {
            "autoscaling.maxReplicas": 5,
            "autoscaling.metric.type": "prometheus",
            "autoscaling.metric.target": 5,
            "autoscaling.metric.serverAddress": "http://a",
            "autoscaling.metric.query": "a",
        }
        for name in ("serverAddress", "query")
    },
    **{
        f"rollout.{name}": {"rollout.strategy": "RollingUpdate"}
        for name in ("maxSurge", "maxUnavailable")
    },
    **{f"monitoring.{name}": {"monitoring.enabled": True} for name in ("interval", "labels")},
    **{
        f"server.apiKeySecret.{name}": {
            "server.apiKeySecret.name": "a",
            "server.apiKeySecret.key": "a",
        }
        for name in ("name", "key")
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
    "hardwareProfile",
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
