"""From `kubectl apply` to an answer, and back to nothing."""

from __future__ import annotations

import re

import pytest

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
from tests.e2e.traffic import first_answer

OPERATOR_PODS = "app.kubernetes.io/name=llm-operator"
CHILDREN = "deployments,replicasets,pods,services,endpointslices"


def test_an_applied_model_answers_and_is_deleted_whole(kubectl: Kubectl):
    assert "created" in kubectl.apply(llm_deployment("smollm2", target="cpu"))
    kubectl.wait_ready("smollm2")

    question = "What is the capital of France?"
    assert "Paris" in first_answer(kubectl.service_url("smollm2"), question)

    columns, row = (re.split(r"\s{2,}", line.strip()) for line in kubectl("get", KIND).splitlines())
    shown = dict(zip(columns, row, strict=True))
    assert shown.pop("AGE")
    assert re.fullmatch(r"\d+(\.\d)?s", shown.pop("COLD-START"))
    assert shown == {
        "NAME": "smollm2",
        "MODEL": MODEL,
        "TARGET": "cpu",
        "REPLICAS": "1/1",
        "READY": "True",
        "REASON": "ModelServing",
    }

    status = kubectl.json("get", KIND, "smollm2")["status"]
    assert status["endpoint"] == f"http://smollm2.{kubectl.namespace}.svc"
    assert status["observedGeneration"] == 1
    assert status["readyReplicas"] == 1

    kubectl("delete", KIND, "smollm2")
    eventually(lambda: not owned(kubectl, "smollm2"), within=60)


def owned(kubectl: Kubectl, name: str) -> list[str]:
    found = kubectl.items(CHILDREN, "-l", f"app.kubernetes.io/instance={name}")
    return [f"{item['kind']}/{item['metadata']['name']}" for item in found]


def test_kubectl_scale_reaches_the_pods(kubectl: Kubectl):
    kubectl.apply(llm_deployment("scaled", target="cpu", replicas=1))
    kubectl.wait_ready("scaled")
    kubectl("scale", "llmdeployment/scaled", "--replicas=2")
    eventually(
        lambda: kubectl.json("get", KIND, "scaled")["status"]["readyReplicas"] == 2, within=120
    )
    scale = kubectl.json("get", "--subresource=scale", KIND, "scaled")
    assert scale["status"]["replicas"] == 2
    assert scale["status"]["selector"] == (
        "app.kubernetes.io/instance=scaled,app.kubernetes.io/name=llm-inference"
    )
    kubectl("scale", "llmdeployment/scaled", "--replicas=0")
    eventually(lambda: not kubectl.pods_of("scaled"), within=60)
    # Nobody serves, so Ready must not say so.
    eventually(
        lambda: condition(kubectl.json("get", KIND, "scaled"), "Ready").get("status") == "False",
        within=30,
    )


@pytest.mark.exclusive
def test_deleting_while_the_operator_is_down_leaves_nothing(
    kubectl: Kubectl, operator: Kubectl, fake_nodes: None
):
    kubectl.apply(llm_deployment("orphan", target="cpu", **ON_FAKE_NODES))
    kubectl.wait_ready("orphan")
    operator("scale", "deployment/llm-operator", "--replicas=0")
    try:
        eventually(lambda: not operator.items("pods", "-l", OPERATOR_PODS), within=60)
        kubectl("delete", KIND, "orphan", "--timeout=20s")
        eventually(lambda: not owned(kubectl, "orphan"), within=60)
    finally:
        operator("scale", "deployment/llm-operator", "--replicas=1")
        operator("rollout", "status", "deployment/llm-operator", "--timeout=60s")


def test_a_deleted_or_edited_child_is_put_back(kubectl: Kubectl, fake_nodes: None):
    kubectl.apply(llm_deployment("healed", target="cpu", **ON_FAKE_NODES))
    kubectl.wait_ready("healed")
    kubectl("delete", "service", "healed")
    eventually(lambda: kubectl.exists("service", "healed"), within=15)

    container = "{.spec.template.spec.containers[0].image}"
    image = kubectl("get", "deployment", "healed", "-o", f"jsonpath={container}")
    kubectl("set", "image", "deployment/healed", "server=example.invalid/other:1")
    eventually(
        lambda: kubectl("get", "deployment", "healed", "-o", f"jsonpath={container}") == image,
        within=15,
    )


def test_a_wrong_image_is_named_and_mending_the_spec_mends_it(kubectl: Kubectl):
    wrong = {"cpu": "localhost:1/no-such-image:v1"}
    kubectl.apply(llm_deployment("mended", target="cpu", image=wrong))

    def failed() -> bool:
        ready = condition(kubectl.json("get", KIND, "mended"), "Ready")
        return ready.get("reason") == "ImagePullFailed" and "no-such-image" in ready["message"]

    eventually(failed, within=60)
    kubectl.apply(llm_deployment("mended", target="cpu"))
    kubectl.wait_ready("mended")


def test_an_image_that_holds_another_model_says_so(kubectl: Kubectl):
    other = llm_deployment("other", target="cpu")
    other["spec"]["model"]["id"] = "Qwen/Qwen3-0.6B"
    kubectl.apply(other)

    def failed() -> bool:
        ready = condition(kubectl.json("get", KIND, "other"), "Ready")
        named = MODEL in ready.get("message", "") and "Qwen/Qwen3-0.6B" in ready["message"]
        return ready.get("reason") == "ModelLoadFailed" and named

    eventually(failed, within=90)


def test_a_namespace_that_enforces_restricted_refuses_others_but_not_ours(kubectl: Kubectl):
    root = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "root"},
        "spec": {"containers": [{"name": "root", "image": "example.invalid/root:1"}]},
    }
    with pytest.raises(CommandError, match="violates PodSecurity"):
        kubectl.apply(root)
    kubectl.apply(llm_deployment("restricted", target="cpu"))
    kubectl.wait_ready("restricted")
    (pod,) = kubectl.pods_of("restricted")
    identity = kubectl("exec", pod["metadata"]["name"], "--", "python", "-c", PROVE_UNPRIVILEGED)
    assert identity.split() == ["65532", "read-only"]


PROVE_UNPRIVILEGED = """
import os
try:
    open("/proof", "w")
except OSError:
    print(os.getuid(), "read-only")
"""


def test_every_field_is_explained(kubectl: Kubectl):
    explained = kubectl("explain", "llmdeployment.spec", "--recursive")
    assert "startupBudgetSeconds" in explained
    crd = kubectl.json("get", "crd", KIND)
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert undescribed(schema["properties"]["spec"], "spec") == []
    assert undescribed(schema["properties"]["status"], "status") == []


def undescribed(schema: dict, path: str) -> list[str]:
    missing = [] if schema.get("description") else [path]
    for name, field in schema.get("properties", {}).items():
        missing += undescribed(field, f"{path}.{name}")
    if "properties" in (items := schema.get("items", {})):
        for name, field in items["properties"].items():
            missing += undescribed(field, f"{path}[].{name}")
    return missing
