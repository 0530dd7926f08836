"""What the API server itself makes of an LLMDeployment: refused with a sentence, or accepted.

A dry run leaves nothing behind, so these tests need no namespace of their own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.harness import KIND, CommandError, Kubectl, llm_deployment

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


def tried(kubectl: Kubectl, manifest: dict[str, Any]) -> dict[str, Any]:
    """The object as the API server would store it."""
    text = json.dumps(manifest)
    answer = kubectl("apply", "--dry-run=server", "-o", "json", "-f", "-", stdin=text)
    stored: dict[str, Any] = json.loads(answer)
    return stored


def source(**members: Any) -> dict[str, Any]:
    return {"model": {"id": "a/b", "source": members}}


IMAGE = {"reference": "registry/weights:1"}
CLAIM = {"claimName": "models"}
FIELD = {"fieldRef": {"fieldPath": "spec.nodeName"}}

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
        "remove it there and set gpu.count",
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
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_spec_is_refused_with_what_to_change(operator: Kubectl, case: str):
    spec, sentence = REFUSED[case]
    with pytest.raises(CommandError) as refused:
        tried(operator, llm_deployment("wrong", **spec))
    assert sentence in str(refused.value)


@pytest.mark.parametrize("name", ["a.b", "1-model", "a" * 64])
def test_a_name_that_no_service_could_have_is_refused(operator: Kubectl, name: str):
    with pytest.raises(CommandError, match="at most 63 lower-case letters"):
        tried(operator, llm_deployment(name))


ACCEPTED = {
    "minimal": {},
    "all of it": {
        "image": {"cpu": "registry/llm@sha256:" + "0" * 64, "gpu": "registry:5000/llm:gpu"},
        "gpu": {"count": 2, "products": ["NVIDIA-A100"], "minMemory": 81920},
        "replicas": 0,
        "resources": {"requests": {"cpu": "500m"}, "limits": {"cpu": 1, "memory": "1.5Gi"}},
        "affinity": {"podAntiAffinity": {"anything": [{"goes": "here"}]}},
        "server": {"maxQueue": 0, "env": [{"name": "A", "value": ""}, {"name": "B"}]},
    },
    "only a request": {"resources": {"requests": {"cpu": 2}}},
    "mig": {"gpu": {"resourceName": "nvidia.com/mig-1g.10gb", "products": ["NVIDIA-A100"]}},
    "only a gpu image": {"target": "gpu", "image": {"gpu": "registry/llm:1"}},
    "only a cpu image": {"image": {"cpu": "registry/llm:1"}},
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_right_spec_is_accepted_as_it_is(operator: Kubectl, case: str):
    stored = tried(operator, llm_deployment("right", **ACCEPTED[case]))
    assert includes(stored["spec"], ACCEPTED[case])


def includes(stored: Any, given: Any) -> bool:
    """Whether nothing that was given got lost or was changed; defaults may come on top."""
    if isinstance(given, dict):
        return all(name in stored and includes(stored[name], each) for name, each in given.items())
    return bool(stored == given)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_accepted(operator: Kubectl, path: Path):
    for document in yaml.safe_load_all(path.read_text()):
        assert tried(operator, document)["metadata"]["name"] == document["metadata"]["name"]


def test_defaults_are_scalars_and_leave_the_rest_of_a_spec_alone(operator: Kubectl):
    stored = tried(operator, llm_deployment("minimal"))["spec"]
    assert stored == {
        "model": {"id": stored["model"]["id"], "task": "auto", "dtype": "auto"},
        "target": "auto",
        "replicas": 1,
    }


def test_columns(kubectl: Kubectl):
    kubectl.apply(llm_deployment("columns", replicas=0))
    narrow = kubectl("get", KIND).splitlines()[0].split()
    assert narrow == ["NAME", "MODEL", "TARGET", "REPLICAS", "READY", "REASON", "AGE"]
    wide = kubectl("get", "llm", "-o", "wide").splitlines()[0].split()
    assert wide == [*narrow, "IMAGE", "ENDPOINT", "MESSAGE"]


def test_it_is_explained_down_to_the_leaves(operator: Kubectl):
    said = operator("explain", "llmdeployment.spec.gpu.minMemory")
    assert "Least memory of one GPU" in said
    assert "exactly one of the members" in operator("explain", "llm.spec.model.source")


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
