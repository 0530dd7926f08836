"""The development cluster does what the tests of the operator rely on.

Assumes a running cluster of this checkout: `python3 -m dev.cluster up`.
"""

import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from dev.cluster import (
    checks,
    control_plane,
    crds,
    fake_nodes,
    faults,
    gpu,
    images,
    lifecycle,
    network,
    paths,
    processes,
    teardown,
    tools,
    toolset,
)
from dev.cluster.commands import ClusterError, run
from dev.cluster.gpu import Gpus
from dev.cluster.kubectl import apply, get, kubectl

NAMESPACE = "cluster-test"
PROBE = f"localhost/{paths.NAME}/probe:{tools.digest()}"
GREETING = f"localhost/{paths.NAME}/greeting:1"
GREETING_TEXT = "hello from an image volume"


def eventually(check: Callable[[], bool], *, within: float = 30) -> None:
    deadline = time.monotonic() + within
    while not check():
        assert time.monotonic() < deadline, f"not within {within:.0f} s"
        time.sleep(0.5)


def pod(name: str, *arguments: str, **spec: object) -> dict:
    container = {"name": "probe", "image": PROBE, "imagePullPolicy": "Never"}
    container |= {"args": list(arguments)}
    defaults = {"containers": [container], "restartPolicy": "Never"}
    metadata = {"name": name, "namespace": NAMESPACE, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": defaults | spec}


def container_of(manifest: dict) -> dict:
    return manifest["spec"]["containers"][0]


def answer_of(manifest: dict) -> str:
    """Run a pod to its end and return what it printed."""
    name = manifest["metadata"]["name"]
    apply(manifest)
    path = "--for=jsonpath={.status.phase}=Succeeded"
    try:
        kubectl("wait", path, f"pod/{name}", "-n", NAMESPACE, "--timeout=60s")
    except ClusterError:
        pytest.fail(kubectl("describe", "pod", name, "-n", NAMESPACE))
    return kubectl("logs", name, "-n", NAMESPACE).strip()


@pytest.fixture(scope="module", autouse=True)
def namespace(tmp_path_factory) -> Iterator[None]:
    images.load(PROBE, {"/probe": tools.path("probe")}, entrypoint=["/probe"])
    greeting = tmp_path_factory.mktemp("greeting") / "greeting"
    greeting.write_text(GREETING_TEXT)
    images.load(GREETING, {"/greeting": greeting}, entrypoint=["/greeting"])
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    metadata = {"name": NAMESPACE, "labels": labels}
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    unlabelled = {"name": f"{NAMESPACE}-open"}
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": unlabelled})
    yield
    kubectl("delete", "namespace", NAMESPACE, f"{NAMESPACE}-open", "--wait=false")


RESTRICTED = {
    "securityContext": {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}
CONTAINED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def restricted(manifest: dict) -> dict:
    manifest["spec"] |= RESTRICTED
    container_of(manifest)["securityContext"] = CONTAINED
    return manifest


def asking(name: str, *arguments: str) -> str:
    return answer_of(restricted(pod(name, *arguments)))


@pytest.fixture(scope="module")
def service(namespace) -> str:
    """A pod that serves `hello` behind a Service; the Service's address."""
    server = restricted(pod("server", "serve", "hello"))
    container_of(server)["ports"] = [{"containerPort": 8080, "hostPort": 18080}]
    server["metadata"]["namespace"] = f"{NAMESPACE}-open"  # restricted forbids host ports
    apply(server)
    ports = [{"port": 80, "targetPort": 8080}]
    metadata = {"name": "server", "namespace": f"{NAMESPACE}-open"}
    spec = {"selector": {"app": "server"}, "ports": ports}
    apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    where = ("-n", f"{NAMESPACE}-open", "--timeout=60s")
    kubectl("wait", "--for=condition=Ready", "pod/server", *where)
    return get("service", "server", "-n", f"{NAMESPACE}-open")["spec"]["clusterIP"]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.read().strip() == b"hello"
    except OSError:
        return False


def test_status_says_that_everything_serves(capsys):
    assert lifecycle.status()
    out = capsys.readouterr().out
    for component in lifecycle.components():
        assert re.search(rf"^{component.name} +\d+ +serves$", out, re.MULTILINE)


def test_the_node_runs_the_pinned_kubernetes():
    node = get("node", network.NODE_NAME)
    assert node["status"]["nodeInfo"]["kubeletVersion"] == toolset.kubernetes_version()
    ready = [c for c in node["status"]["conditions"] if c["type"] == "Ready"]
    assert ready[0]["status"] == "True"


def test_a_service_answers_the_host(service):
    eventually(lambda: answers(f"http://{service}/"))


def test_a_service_answers_a_pod_by_name(service):
    assert asking("by-name", "get", f"http://server.{NAMESPACE}-open.svc/") == "hello"


def test_a_pod_reaches_itself_through_its_service(service):
    url = f"http://server.{NAMESPACE}-open/"
    where = ("-n", f"{NAMESPACE}-open")
    assert kubectl("exec", "server", *where, "--", "/probe", "get", url).strip() == "hello"


def test_dns_resolves_a_service_and_refuses_what_is_not_there(service):
    name = f"server.{NAMESPACE}-open.svc.{network.CLUSTER_DOMAIN}"
    assert asking("resolves", "lookup", name) == service
    where = ("-n", f"{NAMESPACE}-open")
    nowhere = f"nowhere.default.svc.{network.CLUSTER_DOMAIN}."
    with pytest.raises(ClusterError, match="no such host"):
        kubectl("exec", "server", *where, "--", "/probe", "lookup", nowhere)


def test_logs_and_exec(service):
    where = ("-n", f"{NAMESPACE}-open")
    assert "serving on :8080" in kubectl("logs", "server", *where)
    read = kubectl("exec", "server", *where, "--", "/probe", "read", "/etc/hostname")
    assert read.strip() == "server"


def test_port_forward(service):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [tools.path("kubectl"), f"--kubeconfig={paths.KUBECONFIG}", "port-forward"]
    command += ["-n", f"{NAMESPACE}-open", "pod/server", f"{port}:8080"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as forward:
        try:
            eventually(lambda: answers(f"http://127.0.0.1:{port}/"))
        finally:
            forward.terminate()


def test_a_host_port_answers(service):
    eventually(lambda: answers(f"http://{network.NODE_ADDRESS}:18080/"))


def test_an_image_volume_is_read():
    manifest = restricted(pod("image-volume", "read", "/mounted/greeting"))
    reference = {"reference": GREETING, "pullPolicy": "Never"}
    manifest["spec"]["volumes"] = [{"name": "greeting", "image": reference}]
    container_of(manifest)["volumeMounts"] = [{"name": "greeting", "mountPath": "/mounted"}]
    assert answer_of(manifest) == GREETING_TEXT


def test_an_image_that_is_built_is_an_image_the_kubelet_has(tmp_path):
    name = f"localhost/{paths.NAME}/built:{time.monotonic_ns()}"
    (tmp_path / "probe").write_bytes(tools.path("probe").read_bytes())
    (tmp_path / "probe").chmod(0o755)
    dockerfile = 'FROM scratch\nCOPY probe /probe\nRUN ["/probe", "read", "/etc/hosts"]\n'
    (tmp_path / "Dockerfile").write_text(f'{dockerfile}ENTRYPOINT ["/probe"]\n')
    folders = ["--local", f"context={tmp_path}", "--local", f"dockerfile={tmp_path}"]
    output = ["--output", f"type=image,name={name}"]
    address = f"--addr=unix://{paths.BUILDKIT_SOCKET}"
    command = [tools.path("buildctl"), address, "build", "--frontend", "dockerfile.v0"]
    subprocess.run([*command, *folders, *output], check=True, capture_output=True)
    try:
        manifest = restricted(pod("built", "read", "/etc/hostname"))
        container_of(manifest)["image"] = name
        assert answer_of(manifest) == "built"
    finally:
        images.ctr("images", "remove", name)


def test_pod_security_refuses_root_in_a_restricted_namespace():
    with pytest.raises(ClusterError, match=r'violates PodSecurity "restricted'):
        apply(pod("root", "read", "/etc/hostname"))


def test_kubectl_top(service):
    def measured() -> bool:
        return "server" in kubectl("top", "pods", "-n", f"{NAMESPACE}-open")

    assert re.search(r"^dev +\d+m", kubectl("top", "nodes"), re.MULTILINE)
    eventually(lambda: _quietly(measured), within=60)


def _quietly(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except ClusterError:
        return False


@pytest.fixture
def gpus() -> Iterator[Gpus]:
    given = Gpus(count=2)
    gpu.give(network.NODE_NAME, given)
    yield given
    gpu.give(network.NODE_NAME, Gpus(count=0))


def gpu_pod(name: str, count: int) -> dict:
    manifest = restricted(pod(name, "read", "/etc/hostname"))
    container_of(manifest)["resources"] = {"limits": {gpu.RESOURCE: str(count)}}
    return manifest


def test_given_gpus_are_schedulable_and_stay(gpus):
    manifest = gpu_pod("with-gpu", 1)
    manifest["spec"]["nodeSelector"] = {"nvidia.com/gpu.product": gpus.product}
    assert answer_of(manifest) == "with-gpu"
    labels = get("node", network.NODE_NAME)["metadata"]["labels"]
    assert labels["nvidia.com/gpu.memory"] == "81559"
    assert labels["nvidia.com/gpu.family"] == "hopper"
    time.sleep(6)  # the kubelet reports the node's status every five seconds
    status = get("node", network.NODE_NAME)["status"]
    assert status["capacity"][gpu.RESOURCE] == status["allocatable"][gpu.RESOURCE] == "2"


def test_gpus_that_are_taken_away_are_gone():
    gpu.give(network.NODE_NAME, Gpus(count=1))
    gpu.give(network.NODE_NAME, Gpus(count=0))
    node = get("node", network.NODE_NAME)
    assert not [name for name in node["metadata"]["labels"] if name.startswith("nvidia.com/")]
    assert node["status"]["capacity"].get(gpu.RESOURCE, "0") == "0"
    apply(gpu_pod("without-gpu", 1))

    def unschedulable() -> bool:
        conditions = get("pod", "without-gpu", "-n", NAMESPACE)["status"].get("conditions", [])
        return any("Insufficient nvidia.com/gpu" in c.get("message", "") for c in conditions)

    eventually(unschedulable)


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    fake_nodes.scale(3, Gpus(count=4))
    yield fake_nodes.present()
    fake_nodes.scale(0, Gpus(count=0))
    assert fake_nodes.present() == []


def test_fake_nodes_run_pods_that_tolerate_them(nodes):
    assert sorted(nodes) == ["fake-0", "fake-1", "fake-2"]
    manifest = gpu_pod("on-fake", 4)
    manifest["spec"] |= {
        "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}],
        "nodeSelector": {"type": "kwok"},
    }
    apply(manifest)
    kubectl("wait", "--for=condition=Ready", "pod/on-fake", "-n", NAMESPACE, "--timeout=30s")
    assert get("pod", "on-fake", "-n", NAMESPACE)["spec"]["nodeName"] in nodes
    kubectl("delete", "pod", "on-fake", "-n", NAMESPACE)  # while kwok can still say it ended


def reaches(address: str) -> str:
    """How a pod's connection to an address ends."""
    manifest = restricted(pod("reaches", "reach", address))
    container_of(manifest)["image"] = checks.load_peer()
    try:
        return answer_of(manifest)
    finally:
        kubectl("delete", "pod", "reaches", "-n", NAMESPACE)


def test_the_address_of_a_fake_pod_leads_nowhere(nodes):
    manifest = restricted(pod("nowhere"))
    manifest["spec"] |= {
        "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}],
        "nodeSelector": {"type": "kwok"},
    }
    apply(manifest)
    kubectl("wait", "--for=condition=Ready", "pod/nowhere", "-n", NAMESPACE, "--timeout=30s")
    address = get("pod", "nowhere", "-n", NAMESPACE)["status"]["podIP"]
    assert ipaddress.ip_address(address) in ipaddress.ip_network(network.FAKE_POD_RANGE)
    kubectl("expose", "pod", "nowhere", "-n", NAMESPACE, "--port=80", "--target-port=8080")
    where = ("service", "nowhere", "-n", NAMESPACE)
    service = get(*where)["spec"]["clusterIP"]
    # A Service without endpoints would refuse too: wait until kube-proxy leads to the pod.
    rules = ["nft", "list", "table", "ip", "kube-proxy"]
    eventually(lambda: f"dnat to {address}:8080" in run(rules))
    for host, port in ((address, 8080), (service, 80)):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port), timeout=10).close()
        assert reaches(f"{host}:{port}") == "refused"
    kubectl("delete", *where)
    kubectl("delete", "pod", "nowhere", "-n", NAMESPACE)  # while kwok can still say it ended


@pytest.mark.parametrize("project", sorted(crds.SOURCES))
def test_the_crds_of_another_project_come_and_go(project):
    crds.switch(project, on=True)
    try:
        for name in crds.SOURCES[project].names:
            kubectl("get", name, "--all-namespaces")
    finally:
        crds.switch(project, on=False)
    for name in crds.SOURCES[project].names:
        with pytest.raises(ClusterError, match="doesn't have a resource type"):
            kubectl("get", name, "--all-namespaces")


def test_a_scaled_object_is_checked_as_keda_would_have_it():
    crds.switch("keda", on=True)
    try:
        metadata = {"name": "scaled", "namespace": NAMESPACE}
        spec = {"scaleTargetRef": {"name": "server"}, "triggers": [{"type": "cpu", "metadata": {}}]}
        scaled = {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": metadata}
        apply(scaled | {"spec": spec})
        with pytest.raises(ClusterError, match=r"spec\.triggers: Required value"):
            apply(scaled | {"spec": {"scaleTargetRef": {"name": "server"}}})
    finally:
        crds.switch("keda", on=False)


@pytest.mark.parametrize("name", sorted(faults.COMPONENTS))
def test_a_paused_component_hangs_until_it_is_resumed(name, capsys):
    component = faults.component(name)
    pid = processes.running(component.name)
    faults.pause(name)
    try:
        eventually(lambda: processes.paused(component.name))
        with pytest.raises(ClusterError, match=r"did not end|timeout|Timeout|deadline"):
            kubectl("create", "configmap", "lost", "-n", NAMESPACE, timeout=5)
        assert not lifecycle.status()
        assert re.search(rf"^{component.name} +{pid}  paused$", capsys.readouterr().out, re.M)
    finally:
        faults.resume(name)
    assert processes.running(component.name) == pid
    eventually(lambda: _quietly(lambda: bool(get("namespace", NAMESPACE))))


def test_a_stopped_api_server_refuses_until_it_is_started(service, capsys):
    faults.stop("apiserver")
    try:
        with pytest.raises(ClusterError, match="refused"):
            kubectl("get", "namespaces")
        assert answers(f"http://{service}/")  # what runs, runs on
        assert not lifecycle.status()
        assert re.search(r"^kube-apiserver +-  stopped$", capsys.readouterr().out, re.MULTILINE)
    finally:
        faults.start("apiserver")
    assert get("namespace", NAMESPACE)["status"]["phase"] == "Active"
    eventually(lifecycle.status, within=60)


def test_kstatus_judges_what_the_cluster_says():
    deployment = get("deployment", "coredns", "-n", "kube-system")
    assert checks.status(deployment)["status"] == "Current"
    deployment["metadata"]["generation"] += 1  # as if somebody had just changed it
    changed = checks.status(deployment)
    assert changed["status"] == "InProgress"
    assert "generation" in changed["message"]
    with pytest.raises(ClusterError, match="kstatus"):
        checks.status({})


def test_services_are_nftables_rules(service):
    rules = subprocess.run(
        ["nft", "list", "table", "ip", "kube-proxy"], check=True, capture_output=True, text=True
    ).stdout
    assert service in rules


def test_the_audit_log_says_who_writes_and_not_who_reads():
    name = f"audited-{time.monotonic_ns()}"
    kubectl("create", "configmap", name, "-n", NAMESPACE)
    kubectl("get", "configmap", name, "-n", NAMESPACE)

    def events() -> list[dict]:
        lines = control_plane.AUDIT_LOG.read_text().splitlines()
        return [json.loads(line) for line in lines if name in line]

    eventually(lambda: bool(events()))
    assert {(e["verb"], e["user"]["username"]) for e in events()} == {("create", "admin")}


def test_every_process_of_the_cluster_is_in_its_cgroups():
    found = teardown.leftovers(paths.CHECKOUT)
    for name, pid in processes.all_running().items():
        assert f"process {name} ({pid})" in found
        assert f"process {pid} in a cgroup of the cluster" in found


def test_up_on_a_running_cluster_changes_nothing():
    before = processes.all_running()
    lifecycle.up()
    assert processes.all_running() == before


def test_up_brings_back_a_killed_kubelet_with_its_pods_and_gpus(gpus, service):
    os.kill(processes.running("kubelet"), signal.SIGKILL)
    eventually(lambda: not lifecycle.status())
    lifecycle.up()
    assert lifecycle.status()
    assert get("node", network.NODE_NAME)["status"]["allocatable"][gpu.RESOURCE] == "2"
    server = get("pod", "server", "-n", f"{NAMESPACE}-open")
    assert server["status"]["containerStatuses"][0]["restartCount"] == 0
    eventually(lambda: answers(f"http://{service}/"))


@pytest.mark.parametrize("command", ["up", "down"])
def test_another_checkout_leaves_this_cluster_alone(command, tmp_path):
    for folder in ("cluster", "tools"):
        shutil.copytree(paths.CHECKOUT / "dev" / folder, tmp_path / "dev" / folder)
    before = processes.all_running()
    there = subprocess.run(
        ["python3", "-m", "dev.cluster", command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert there.returncode == 1
    assert f"the cluster on this machine belongs to {paths.CHECKOUT}" in there.stderr
    assert processes.all_running() == before
