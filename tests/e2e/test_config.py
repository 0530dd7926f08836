"""Changed Secrets and ConfigMaps reach the pods; what is in them reaches nobody else."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from dev.cluster import tools
from tests.e2e import traffic
from tests.e2e.conftest import ROOT, local_operator
from tests.e2e.harness import (
    KIND,
    Kubectl,
    condition,
    eventually,
    llm_deployment,
)
from tests.e2e.solitude import alone

# Longer than the operator takes to begin a rollout, by far.
LONG_ENOUGH = 5


def secret(name: str, **data: str) -> dict[str, Any]:
    metadata = {"name": name}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def configured(name: str) -> dict[str, Any]:
    """An LLMDeployment that reads a key of the Secret `token` and all of the ConfigMap `flags`."""
    token = {"secretKeyRef": {"name": "token", "key": "token"}}
    env = [{"name": "TOKEN", "valueFrom": token}]
    server = {"env": env, "envFrom": [{"configMapRef": {"name": "flags"}}], "drainSeconds": 60}
    return llm_deployment(name, target="cpu", server=server)


def test_a_changed_secret_or_config_map_replaces_the_pods_without_a_lost_request(
    kubectl: Kubectl, request: pytest.FixtureRequest, tmp_path: Path
):
    kubectl.apply(secret("token", token="first-value-43"), config_map("flags", FLAG="one"))
    kubectl.apply(configured("reading"))
    kubectl.wait_ready("reading")
    first = only_pod(kubectl, "reading")
    assert environment_of(kubectl, first)["TOKEN"] == "first-value-43"

    kubectl("label", "secret", "token", "team=llm")
    kubectl("annotate", "configmap", "flags", "note=nothing")
    kubectl.apply(secret("token", token="first-value-43", unread="anything"))
    time.sleep(LONG_ENOUGH)
    assert only_pod(kubectl, "reading") == first, "nothing that the pod reads has changed"

    with traffic.steady(kubectl.service_url("reading")) as clients:
        kubectl.apply(secret("token", token="second-value-44"))
        second = eventually(lambda: another_pod(kubectl, "reading", first), within=240)
        clients.more()
    assert clients.failures == []
    assert environment_of(kubectl, second)["TOKEN"] == "second-value-44"

    kubectl("delete", "secret", "token")
    time.sleep(LONG_ENOUGH)
    assert only_pod(kubectl, "reading") == second, "pods that serve outlive their Secret"
    kubectl.apply(secret("token", token="second-value-44"), config_map("flags", FLAG="two"))
    third = eventually(lambda: another_pod(kubectl, "reading", second), within=240)
    assert environment_of(kubectl, third)["FLAG"] == "two"

    assert not leaked(kubectl, operator_log(request, tmp_path), "second-value-44")


def pod_names(kubectl: Kubectl, name: str) -> list[str]:
    pods = kubectl.items("pods", "-l", f"app.kubernetes.io/instance={name}")
    return [pod["metadata"]["name"] for pod in pods]


def only_pod(kubectl: Kubectl, name: str) -> str:
    (pod,) = pod_names(kubectl, name)
    return pod


def another_pod(kubectl: Kubectl, name: str, old: str) -> str:
    """The pod that has wholly taken the place of `old`."""
    pods = pod_names(kubectl, name)
    assert len(pods) == 1, pods
    (pod,) = pods
    assert pod != old
    assert condition(kubectl.json("get", "pod", pod), "Ready").get("status") == "True"
    return pod


def environment_of(kubectl: Kubectl, pod: str) -> dict[str, str]:
    printed = kubectl(
        "exec", pod, "--", "python", "-c", "import json, os; print(json.dumps(dict(os.environ)))"
    )
    found: dict[str, str] = json.loads(printed)
    return found


def operator_log(request: pytest.FixtureRequest, folder: Path) -> str:
    """All that the operator has said."""
    if request.config.getoption("--local-operator"):
        return (folder / "operator.log").read_text()
    operator: Kubectl = request.getfixturevalue("operator")
    return operator("logs", "deployment/llm-operator", "--all-containers")


def leaked(kubectl: Kubectl, log: str, value: str) -> list[str]:
    """Where a Secret's value is found besides in the Secret itself."""
    kinds = f"{KIND},deployments,replicasets,pods,services,events,networkpolicies"
    places = {item["metadata"]["name"]: json.dumps(item) for item in kubectl.items(kinds)}
    places["the operator's log"] = log
    encoded = base64.b64encode(value.encode()).decode()
    return [place for place, text in places.items() if value in text or encoded in text]


def test_a_new_api_key_is_taken_up_by_the_pods_there_are(kubectl: Kubectl):
    kubectl.apply(secret("keys", keys="old-key\n"))
    server = {"apiKeySecret": {"name": "keys", "key": "keys"}}
    kubectl.apply(llm_deployment("guarded", target="cpu", server=server))
    kubectl.wait_ready("guarded")
    pod, url = only_pod(kubectl, "guarded"), kubectl.service_url("guarded")
    eventually(lambda: asked_with(url, None) == 401, within=20)
    assert [asked_with(url, key) for key in ("old-key", "new-key")] == [200, 401]

    kubectl.apply(secret("keys", keys="new-key\n"))
    eventually(lambda: asked_with(url, "new-key") == 200, within=150, every=2)
    eventually(lambda: asked_with(url, "old-key") == 401, within=10)
    assert only_pod(kubectl, "guarded") == pod


def asked_with(url: str, key: str | None) -> int:
    """The answer's status; 0 where a node's proxy has not learned of the pod yet."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        return httpx.get(f"{url}/v1/models", headers=headers, timeout=10).status_code
    except httpx.ConnectError:
        return 0


@pytest.mark.exclusive
def test_without_the_right_to_read_secrets_models_are_served_all_the_same(
    crd: Kubectl, tmp_path: Path
):
    with alone(crd), namespace(crd) as kubectl:
        kubeconfig = install_roles(kubectl, tmp_path, rollOnConfigChange="false")
        assert "forbidden" in refused(kubectl, kubeconfig, "get", "secrets")
        unread = {"WATCH_NODES": "false", "ROLL_ON_CONFIG_CHANGE": "false"}
        with local_operator(kubectl.namespace, tmp_path, kubeconfig=kubeconfig, **unread):
            kubectl.apply(secret("token", token="t"), config_map("flags", FLAG="one"))
            kubectl.apply(configured("unread"))
            kubectl.wait_ready("unread")
            pod = only_pod(kubectl, "unread")
            kubectl.apply(secret("token", token="changed"))
            time.sleep(LONG_ENOUGH)
            assert only_pod(kubectl, "unread") == pod
            assert traffic.first_answer(kubectl.service_url("unread"))
        log = (tmp_path / "operator.log").read_text()
        assert "ModelServing" in log
        assert "forbidden" not in log.lower()


@contextmanager
def namespace(cluster: Kubectl) -> Iterator[Kubectl]:
    name = f"e2e-unread-{os.getpid()}"
    cluster("create", "namespace", name)
    cluster("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    inside = Kubectl(cluster.binary, cluster.kubeconfig, name)
    try:
        yield inside
    finally:
        inside("delete", KIND, "--all", "--wait=false")
        cluster("delete", "namespace", name, "--wait=false")
        eventually(lambda: not inside.items("pods"), within=90)


def install_roles(kubectl: Kubectl, folder: Path, **values: str) -> Path:
    """Create what the chart makes of roles for one namespace; a kubeconfig to use them."""
    inside = kubectl.namespace
    chosen = {**values, "watchNamespaces": f"{{{inside}}}", "watchNodes": "false"}
    rendered = subprocess.run(
        [
            str(tools.path("helm")), "template", inside, str(ROOT / "deploy/helm/llm-operator"),
            f"--namespace={inside}", f"--values={ROOT / 'dev/demo/values.yaml'}",
            *(f"--set={name}={value}" for name, value in chosen.items()),
        ],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    wanted = {"ServiceAccount", "Role", "RoleBinding"}
    kubectl.apply(*(each for each in yaml.safe_load_all(rendered) if each["kind"] in wanted))
    (account,) = [
        item["metadata"]["name"]
        for item in kubectl.items("serviceaccounts")
        if item["metadata"]["name"] != "default"
    ]
    config = yaml.safe_load(kubectl.kubeconfig.read_text())
    token = kubectl("create", "token", account, "--duration=1h").strip()
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
    path = folder / "restricted.kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


def refused(kubectl: Kubectl, kubeconfig: Path, *command: str) -> str:
    inside = Kubectl(kubectl.binary, kubeconfig, kubectl.namespace)
    with pytest.raises(AssertionError) as caught:
        inside(*command)
    return str(caught.value).lower()
