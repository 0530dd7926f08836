"""What the API server itself makes of an LLMDeployment: refused with a sentence, or accepted.

A dry run leaves nothing behind, so most of these tests need no namespace of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from hypothesis import Phase, find, settings

from dev.cluster import paths
from llm_operator import crd as generated
from llm_operator.reference import fields
from tests.e2e import specs
from tests.e2e.api_server import ApiServer, RefusedError
from tests.e2e.harness import KIND, CommandError, Kubectl, llm_deployment

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.fixture(scope="module")
def server(crd: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    asked = ApiServer(paths.KUBECONFIG, tmp_path_factory.mktemp("client"), "default")
    yield asked
    asked.close()


def tried(kubectl: Kubectl, manifest: dict[str, Any]) -> dict[str, Any]:
    """The object as the API server would store it if it were applied."""
    text = json.dumps(manifest)
    answer = kubectl("apply", "--dry-run=server", "-o", "json", "-f", "-", stdin=text)
    stored: dict[str, Any] = json.loads(answer)
    return stored


def source(**members: Any) -> dict[str, Any]:
    return {"model": {"id": "a/b", "source": members}}


IMAGE = {"reference": "registry/weights:1"}
CLAIM = {"claimName": "models"}
FIELD = {"fieldRef": {"fieldPath": "spec.nodeName"}}
ONE_CPU = {"requests": {"cpu": 1}}
TWICE = {"maxReplicas": 2}


def hub(**members: Any) -> dict[str, Any]:
    return source(hub=members)


def metric(**members: Any) -> dict[str, Any]:
    return {"autoscaling": {"maxReplicas": 2, "metric": members}, "resources": ONE_CPU}


def limits(**amounts: Any) -> dict[str, Any]:
    return {"resources": {"limits": amounts}}


def peer(**members: Any) -> dict[str, Any]:
    return {"networkPolicy": {"ingressFrom": [members]}}


def nodes(**requirement: Any) -> dict[str, Any]:
    return node_term(matchExpressions=[{"key": "a", **requirement}])


def node_fields(**requirement: Any) -> dict[str, Any]:
    name = {"key": "metadata.name", "operator": "In", "values": ["a"]}
    return node_term(matchFields=[name | requirement])


def node_term(**term: Any) -> dict[str, Any]:
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    return {"affinity": {"nodeAffinity": required}}


def spread(**members: Any) -> dict[str, Any]:
    constraint = {"topologyKey": "rack", "whenUnsatisfiable": "ScheduleAnyway"}
    return {"topologySpreadConstraints": [constraint | members]}


REFUSED = {
    "unknown target": ({"target": "tpu"}, 'Unsupported value: "tpu"'),
    "no model": ({"model": {}}, "spec.model.id: Required value"),
    "model id that is none": ({"model": {"id": "a b"}}, "spec.model.id"),
    "unknown field": ({"modle": "x"}, 'unknown field "spec.modle"'),
    "negative replicas": ({"replicas": -1}, "should be greater than or equal to 0"),
    "no gpus": ({"gpu": {"count": 0}}, "should be greater than or equal to 1"),
    "negative gpus": ({"gpu": {"count": -2}}, "should be greater than or equal to 1"),
    "two sources": (
        source(image=IMAGE, persistentVolumeClaim=CLAIM),
        "keep one and remove the others",
    ),
    "preloaded and another": (source(preloaded={}, image=IMAGE), "keep one and remove the others"),
    "a source that is none": (source(), "source names exactly one"),
    "absolute path": (
        source(persistentVolumeClaim={**CLAIM, "path": "/models"}),
        "remove the leading /",
    ),
    "path out of the volume": (
        source(persistentVolumeClaim={**CLAIM, "path": "a/../../b"}),
        "remove the leading / and every ..",
    ),
    "gpu settings on cpu": (
        {"target": "cpu", "gpu": {"count": 1}},
        "remove gpu, or set target to gpu or auto",
    ),
    "two ways to name an image": (
        {"image": {"repository": "registry/llm", "cpu": "registry/llm:1"}},
        "remove one of the two",
    ),
    "tag beside whole references": (
        {"image": {"tag": "v1", "cpu": "registry/llm:1", "gpu": "registry/llm:2"}},
        "remove one of the two",
    ),
    "no image for the gpu": (
        {"target": "gpu", "image": {"cpu": "registry/llm:1"}},
        "add image.gpu",
    ),
    "no image for the gpu that auto must take": (
        {"gpu": {"count": 1}, "image": {"cpu": "registry/llm:1"}},
        "add image.gpu",
    ),
    "no image for the cpu": ({"image": {"gpu": "registry/llm:1"}}, "add image.cpu"),
    "image with a space": ({"image": {"cpu": "a b"}}, "spec.image.cpu"),
    "memory of a gpu without the label": (
        {"gpu": {"resourceName": "amd.com/gpu", "minMemory": "40G"}},
        "remove them and choose nodes by nodeSelector",
    ),
    "product of a gpu without the label": (
        {"gpu": {"resourceName": "amd.com/gpu", "products": ["MI300X"]}},
        "remove them and choose nodes by nodeSelector",
    ),
    "memory that is none": ({"gpu": {"minMemory": "plenty"}}, "spec.gpu.minMemory"),
    "gpu resource that is none": ({"gpu": {"resourceName": "gpu"}}, "extended resource"),
    "gpus in limits": (
        {"resources": {"limits": {"nvidia.com/gpu": 1}}},
        "remove them from resources",
    ),
    "gpus in requests": (
        {"resources": {"requests": {"amd.com/gpu": 1}}},
        "remove them from resources",
    ),
    "gpus said twice": (
        {
            "gpu": {"resourceName": "example.com/npu"},
            "resources": {"limits": {"example.com/npu": 1}},
        },
        "remove them from resources",
    ),
    "request above limit": (
        {"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1G"}}},
        "lower the request or raise the limit",
    ),
    "numbers above limit": (
        {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": "1500m"}}},
        "lower the request or raise the limit",
    ),
    "quantity that is none": (
        {"resources": {"limits": {"memory": "lots"}}},
        "spec.resources.limits.memory",
    ),
    "variable of the server": (
        {"server": {"env": [{"name": "LLM_MODEL_ID", "value": "x"}]}},
        "set the field instead",
    ),
    "value twice": (
        {"server": {"env": [{"name": "A", "value": "x", "valueFrom": FIELD}]}},
        "remove one of them",
    ),
    "value from nowhere": (
        {"server": {"env": [{"name": "A", "valueFrom": {}}]}},
        "exactly one of secretKeyRef",
    ),
    "variable twice": (
        {"server": {"env": [{"name": "A", "value": "x"}, {"name": "A", "value": "y"}]}},
        "Duplicate value",
    ),
    "no time to start": ({"probes": {"startupBudgetSeconds": 0}}, "greater than or equal to 1"),
    "unknown level": ({"server": {"logLevel": "loud"}}, 'Unsupported value: "loud"'),
    "cache in two places": (
        hub(cache={"claimName": "a", "size": "1Gi"}),
        "either claimName, to share a volume, or size",
    ),
    "cache nowhere": (hub(cache={}), "either claimName, to share a volume, or size"),
    "class of somebody else's volume": (
        hub(cache={"claimName": "a", "storageClassName": "fast"}),
        "set size, or remove it",
    ),
    "volume of no size": (hub(cache={"size": "0Gi"}), "for example 20Gi"),
    "address with a password": (hub(endpoint="https://me:secret@hub"), "hub.endpoint"),
    "port that is none": (hub(endpoint="https://hub:65536"), "hub.endpoint"),
    "token said twice": (
        {**hub(), "server": {"env": [{"name": "HF_TOKEN", "value": "x"}]}},
        "set its endpoint and tokenSecret instead",
    ),
    "no memory of a gpu": ({"gpu": {"minMemory": "0"}}, "for example 40G"),
    "gpu of kubernetes": ({"gpu": {"resourceName": "kubernetes.io/gpu"}}, "extended resource of a"),
    "repository with a tag": ({"image": {"repository": "registry/llm:v1"}}, "image.repository"),
    "repository in capitals": ({"image": {"repository": "registry/LLM"}}, "image.repository"),
    "unknown resource": (limits(gpu=1), "or an extended resource such as example.com/nic"),
    "huge pages": (limits(**{"hugepages-2Mi": "4Mi"}), "resources are cpu, memory, ephemeral"),
    "half a device": (limits(**{"example.com/nic": "500m"}), "use a whole number"),
    "device requested alone": (
        {"resources": {"requests": {"example.com/nic": 1}}},
        "and in requests to the same number or not at all",
    ),
    "device requested less than whole": (
        {"resources": {"requests": {"example.com/nic": 1}, "limits": {"example.com/nic": 2}}},
        "and in requests to the same number or not at all",
    ),
    "negative cpu": (limits(cpu=-1), "should be greater than or equal to 0"),
    "fraction that is no text": (limits(cpu=0.5), "must be of type integer,string"),
    "more at least than at most": (
        {"autoscaling": {"minReplicas": 3, "maxReplicas": 2}, "resources": ONE_CPU},
        "lower it or raise the maximum",
    ),
    "nothing to measure": (
        {"autoscaling": {"minReplicas": 0, "maxReplicas": 2}, "resources": ONE_CPU},
        "use a metric of type prometheus, or set minReplicas to 1 or more",
    ),
    "no target": (metric(type="runningRequests"), "set what one replica should have on average"),
    "percentage that is none": (metric(type="cpu", target=1001), "use at most 1000"),
    "query without prometheus": (
        metric(type="cpu", query="up", serverAddress="http://a"),
        "belong to type prometheus, which needs both",
    ),
    "prometheus without a query": (
        metric(type="prometheus", target=1, serverAddress="http://a"),
        "belong to type prometheus, which needs both",
    ),
    "percentage of nothing": (
        {"autoscaling": TWICE},
        "set it, or choose another autoscaling.metric.type",
    ),
    "no maximum": ({"autoscaling": {}}, "spec.autoscaling.maxReplicas: Required value"),
    "surge of another strategy": (
        {"rollout": {"strategy": "Recreate", "maxSurge": 1}},
        "set it, or remove them",
    ),
    "rollout that cannot move": (
        {"rollout": {"strategy": "RollingUpdate", "maxSurge": 0, "maxUnavailable": "0%"}},
        "raise one of them",
    ),
    "more than all": (
        {"rollout": {"strategy": "RollingUpdate", "maxUnavailable": "101%"}},
        "rollout.maxUnavailable",
    ),
    "number of pods in quotes": (
        {"rollout": {"strategy": "RollingUpdate", "maxSurge": "1"}},
        "rollout.maxSurge",
    ),
    "peers of no policy": (
        {"networkPolicy": {"enabled": False, "ingressFrom": [{"podSelector": {}}]}},
        "remove them, or set networkPolicy.enabled to true",
    ),
    "peer that is nobody": (peer(), "a peer is an ipBlock, or else"),
    "peer of two kinds": (
        peer(ipBlock={"cidr": "10.0.0.0/8"}, podSelector={}),
        "a peer is an ipBlock, or else",
    ),
    "address for a network": (peer(ipBlock={"cidr": "10.0.0.1"}), "cidr is a network such as"),
    "address in a network": (peer(ipBlock={"cidr": "10.1.2.3/8"}), "cidr is a network such as"),
    "exception from elsewhere": (
        peer(ipBlock={"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}),
        "except names smaller ones within it",
    ),
    "range without a beginning": (
        {"networkPolicy": {"egress": [{"ports": [{"endPort": 9}]}]}},
        "set port to a number",
    ),
    "range of a name": (
        {"networkPolicy": {"egress": [{"ports": [{"port": "http", "endPort": 9}]}]}},
        "set port to a number",
    ),
    "scraped by nobody": (
        {"monitoring": {"labels": {"release": "prometheus"}}},
        "set monitoring.enabled to true, or remove them",
    ),
    "unmeasured time": (
        {"monitoring": {"enabled": True, "interval": "30"}},
        "spec.monitoring.interval",
    ),
    "label that is none": ({"podLabels": {"a b": "c"}}, "a key is a name such as"),
    "value that is none": ({"podLabels": {"a": "b c"}}, "spec.podLabels.a"),
    "annotation key that is none": ({"podAnnotations": {"/a": "c"}}, "a key is a name such as"),
    "node label that is none": ({"nodeSelector": {"-a": "c"}}, "a key is a name such as"),
    "labels of the operator": (
        {"podLabels": {"app.kubernetes.io/name": "mine"}},
        "pod-template-hash, app.kubernetes.io/name",
    ),
    "label of the deployment": ({"podLabels": {"pod-template-hash": "1"}}, "use other keys"),
    "annotations of the operator": (
        {"podAnnotations": {"llm-operator.dev/config": "1"}},
        "keys that begin with llm-operator.dev/ are set by the operator: use other keys",
    ),
    "every taint by accident": (
        {"tolerations": [{"effect": "NoSchedule"}]},
        "set operator to Exists, or name a key",
    ),
    "value compared with nothing": (
        {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]},
        "remove value, or set operator to Equal",
    ),
    "time of another effect": (
        {"tolerations": [{"key": "a", "effect": "NoSchedule", "tolerationSeconds": 1}]},
        "set effect to NoExecute, or remove",
    ),
    "values of no operator": (
        nodes(operator="Exists", values=["a"]),
        "Gt and Lt one whole number, others take none",
    ),
    "comparison with a word": (
        nodes(operator="Gt", values=["many"]),
        "Gt and Lt one whole number, others take none",
    ),
    "comparison with two": (
        nodes(operator="Lt", values=["1", "2"]),
        "Gt and Lt one whole number, others take none",
    ),
    "in nothing": (
        spread(labelSelector={"matchExpressions": [{"key": "a", "operator": "In"}]}),
        "operators In and NotIn need values, others take none",
    ),
    "domains that need not be": (spread(minDomains=2), "set it, or remove minDomains"),
    "label that selects already": (
        spread(labelSelector={"matchLabels": {"a": "b"}}, matchLabelKeys=["a"]),
        "remove it from one of them",
    ),
    "label that selects by itself": (
        spread(matchLabelKeys=["app.kubernetes.io/name"]),
        "remove it from one of them",
    ),
    "spread twice": (
        {
            "topologySpreadConstraints": [
                {"topologyKey": "rack", "whenUnsatisfiable": "ScheduleAnyway"},
                {"topologyKey": "rack", "whenUnsatisfiable": "ScheduleAnyway", "maxSkew": 2},
            ]
        },
        "Duplicate value",
    ),
    "values from two places": (
        {"server": {"envFrom": [{"secretRef": {"name": "a"}, "configMapRef": {"name": "b"}}]}},
        "exactly one of secretRef and configMapRef",
    ),
    "field that pods do not tell": (
        {"server": {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec"}}}]}},
        "fieldRef.fieldPath",
    ),
    "key that no secret has": (
        {"server": {"apiKeySecret": {"name": "a", "key": "../b"}}},
        "server.apiKeySecret.key",
    ),
    "profile that is no name": ({"hardwareProfile": "A 100"}, "spec.hardwareProfile"),
    "number in words": ({"replicas": "two"}, "must be of type integer"),
    "switch in words": ({"suspend": "yes"}, "must be of type boolean"),
    "one for many": ({"tolerations": {"key": "a"}}, 'unknown field "spec.tolerations.key"'),
    "variables as a map": ({"server": {"env": {"A": "b"}}}, 'unknown field "spec.server.env.A"'),
    "number for a text": (
        {"server": {"env": [{"name": "A", "value": 1}]}},
        "must be of type string",
    ),
    "typing error deep inside": (
        {"affinity": {"nodeAffinity": {"requiredDuringScheduling": []}}},
        'unknown field "spec.affinity.nodeAffinity.requiredDuringScheduling"',
    ),
    "node by another field": (
        node_fields(key="spec.unschedulable"),
        'matchFields[0].key: Unsupported value: "spec.unschedulable"',
    ),
    "node that is none": (node_fields(values=["a b"]), "matchFields[0].values[0]"),
    "two names of one node": (node_fields(values=["a", "b"]), "must have at most 1 item"),
}
NAME = "at most 63 lower-case letters"


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_spec_is_refused_with_what_to_change(server: ApiServer, case: str):
    spec, sentence = REFUSED[case]
    with pytest.raises(RefusedError) as refused:
        server.create(llm_deployment("wrong", **spec))
    assert sentence in str(refused.value)


def nodes_of_the_schema() -> Iterator[dict[str, Any]]:
    version = generated.custom_resource_definition()["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    yield schema
    for _, node in fields(schema):
        yield node
        yield node.get("items", {})


def test_every_rule_has_a_case():
    messages = {
        rule["message"]
        for node in nodes_of_the_schema()
        for rule in node.get("x-kubernetes-validations", ())
    }
    sentences = [NAME, *(sentence for _, sentence in REFUSED.values())]
    untried = {each for each in messages if not any(part in each for part in sentences)}
    assert untried == set()


PATTERNS = [path for path in specs.leaves() if "pattern" in specs.at(path)]
ANY = settings(max_examples=10, phases=(Phase.generate,), database=None, deadline=None)
NOT_EVEN_TEXT = "\n{é"


@pytest.mark.parametrize("path", PATTERNS)
def test_a_text_that_does_not_fit_is_refused_by_name(server: ApiServer, path: str):
    spec = find(specs.around(path, NOT_EVEN_TEXT), lambda _: True, settings=ANY, random=Random(0))
    with pytest.raises(RefusedError) as refused:
        server.create(llm_deployment("wrong") | {"spec": spec})
    where = "spec." + re.sub(r"\[\]", "[0]", path)
    assert re.search(rf"{re.escape(where)}: Invalid value: .* should match '", str(refused.value))


@pytest.mark.parametrize("name", ["a.b", "1-model", "a" * 64])
def test_a_name_that_no_service_could_have_is_refused(server: ApiServer, name: str):
    with pytest.raises(RefusedError, match=NAME):
        server.create(llm_deployment(name))


def test_kubectl_tells_of_unknown_fields_and_broken_rules(crd: Kubectl):
    with pytest.raises(CommandError, match=r'unknown field "spec\.modle"'):
        tried(crd, llm_deployment("wrong", modle="x"))
    with pytest.raises(CommandError, match="remove gpu, or set target to gpu or auto"):
        tried(crd, llm_deployment("wrong", target="cpu", gpu={"count": 1}))


ACCEPTED = {
    "minimal": {},
    "all of it": {
        "image": {"cpu": "registry/llm@sha256:" + "0" * 64, "gpu": "registry:5000/llm:gpu"},
        "gpu": {"count": 2, "products": ["NVIDIA-A100"], "minMemory": 81920},
        "replicas": 0,
        "resources": {"requests": {"cpu": "500m"}, "limits": {"cpu": 1, "memory": "1.5Gi"}},
        "server": {"maxQueue": 0, "env": [{"name": "A", "value": ""}, {"name": "B"}]},
    },
    "only a request": {"resources": {"requests": {"cpu": 2}}},
    "fraction in quotes": {"resources": {"requests": {"cpu": "0.5"}}},
    "device in limits alone": limits(**{"example.com/nic": 2}),
    "device in both": {
        "resources": {"requests": {"example.com/nic": "2"}, "limits": {"example.com/nic": 2}}
    },
    "mig": {"gpu": {"resourceName": "nvidia.com/mig-1g.10gb", "products": ["NVIDIA-A100"]}},
    "amd": {"gpu": {"resourceName": "amd.com/gpu", "count": 8}},
    "only a gpu image": {"target": "gpu", "image": {"gpu": "registry/llm:1"}},
    "only a cpu image": {"image": {"cpu": "registry/llm:1"}},
    "image by tag and digest": {"image": {"cpu": "localhost:5000/a/b__c:v1@sha256:" + "0" * 64}},
    "hub": hub(),
    "hub within the cluster": hub(endpoint="http://mirror.models.svc:8000/hf"),
    "hub's variables without a hub": {"server": {"env": [{"name": "HF_TOKEN", "value": "x"}]}},
    "dots in a path": source(persistentVolumeClaim={**CLAIM, "path": "a..b/.c"}),
    "autoscaling by a limit": {"autoscaling": TWICE, "resources": {"limits": {"cpu": 1}}},
    "autoscaling by a profile": {"autoscaling": TWICE, "hardwareProfile": "large"},
    "from zero": {
        "autoscaling": {
            "minReplicas": 0,
            "maxReplicas": 1,
            "metric": {
                "type": "prometheus",
                "target": 1,
                "serverAddress": "http://prometheus:9090",
                "query": "sum(a)",
            },
        }
    },
    "all at once": {"rollout": {"strategy": "RollingUpdate", "maxSurge": "100%"}},
    "no surge": {"rollout": {"strategy": "RollingUpdate", "maxSurge": 0}},
    "every taint": {"tolerations": [{"operator": "Exists"}]},
    "a taint's value": {"tolerations": [{"key": "a", "value": "", "effect": "NoExecute"}]},
    "no spread": {"topologySpreadConstraints": []},
    "two spreads over one key": {
        "topologySpreadConstraints": [
            {"topologyKey": "a", "whenUnsatisfiable": "ScheduleAnyway"},
            {"topologyKey": "a", "whenUnsatisfiable": "DoNotSchedule", "minDomains": 2},
        ]
    },
    "more memory than": nodes(operator="Gt", values=["40000"]),
    "any node but one": node_fields(operator="NotIn"),
    "all that a pod can say of others": {
        "affinity": {"podAffinity": specs.NEAR, "podAntiAffinity": specs.APART}
    },
    "everybody here": peer(podSelector={}),
    "everybody there": peer(podSelector={}, namespaceSelector={}),
    "a network but for a part": peer(ipBlock={"cidr": "::/0", "except": ["fe80::/10"]}),
    "anywhere": {"networkPolicy": {"egress": [{}]}},
    "ports": {"networkPolicy": {"egress": [{"ports": [{"port": 1, "endPort": 1}, {"port": "a"}]}]}},
    "no policy": {"networkPolicy": {"enabled": False}},
    "label with a domain": {"podLabels": {"example.com/team": ""}},
    "any annotation": {"podAnnotations": {"a": "\U0001f600\n{}"}},
    "field of the pod": {
        "server": {
            "env": [
                {
                    "name": "A",
                    "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['example.com/a']"}},
                }
            ]
        }
    },
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_right_spec_is_accepted_as_it_is(server: ApiServer, case: str):
    stored = server.create(llm_deployment("right", **ACCEPTED[case]))
    assert includes(stored["spec"], ACCEPTED[case])


def includes(stored: Any, given: Any) -> bool:
    """Whether nothing that was given got lost or was changed; defaults may come on top."""
    if isinstance(given, dict):
        return all(name in stored and includes(stored[name], each) for name, each in given.items())
    if isinstance(given, list):
        return len(stored) == len(given) and all(map(includes, stored, given))
    return bool(stored == given)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_accepted(crd: Kubectl, path: Path):
    for document in yaml.safe_load_all(path.read_text()):
        assert tried(crd, document)["metadata"]["name"] == document["metadata"]["name"]


def test_defaults_are_scalars_and_leave_the_rest_of_a_spec_alone(crd: Kubectl):
    stored = tried(crd, llm_deployment("minimal"))["spec"]
    assert stored == {
        "model": {"id": stored["model"]["id"], "task": "auto", "dtype": "auto"},
        "target": "auto",
        "replicas": 1,
        "suspend": False,
    }


def test_columns(kubectl: Kubectl):
    kubectl.apply(llm_deployment("columns", replicas=0))
    narrow = kubectl("get", KIND).splitlines()[0].split()
    assert narrow == ["NAME", "MODEL", "TARGET", "REPLICAS", "READY", "REASON", "COLD-START", "AGE"]
    wide = kubectl("get", "llm", "-o", "wide").splitlines()[0].split()
    assert wide == [*narrow, "DEVICE", "IMAGE", "ENDPOINT", "MESSAGE"]


def test_it_is_explained_down_to_the_leaves(crd: Kubectl):
    said = crd("explain", "llmdeployment.spec.gpu.minMemory")
    assert "Least memory of one GPU" in said
    assert "exactly one of the members" in crd("explain", "llm.spec.model.source")


def test_a_status_is_not_for_users_and_a_spec_is_not_for_the_status(kubectl: Kubectl):
    manifest = llm_deployment("split", replicas=0)
    kubectl.apply(manifest | {"status": {"target": "gpu", "replicas": 7}})
    live = kubectl.json("get", KIND, "split")
    assert live.get("status", {}).get("replicas") != 7
    generation = live["metadata"]["generation"]
    kubectl(
        "patch", KIND, "split", "--subresource=status", "--type=merge",
        "-p", json.dumps({"spec": {"replicas": 5}, "status": {"image": "x"}}),
    )  # fmt: skip
    live = kubectl.json("get", KIND, "split")
    assert live["spec"]["replicas"] == 0
    assert live["metadata"]["generation"] == generation


def test_scale_reads_and_writes_replicas(kubectl: Kubectl):
    kubectl.apply(llm_deployment("scale", replicas=0))
    kubectl("scale", "llm/scale", "--replicas=2", "--current-replicas=0")
    assert kubectl.json("get", KIND, "scale")["spec"]["replicas"] == 2
    scale = kubectl.json("get", "--subresource=scale", KIND, "scale")
    assert (scale["kind"], scale["spec"]["replicas"]) == ("Scale", 2)
    patch = json.dumps({"spec": {"replicas": -1}})
    with pytest.raises(CommandError, match="greater than or equal to 0"):
        kubectl("patch", "llm/scale", "--type=merge", "-p", patch)
