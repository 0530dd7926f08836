"""The cluster, the installed operator and a namespace of its own for each test."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from dev.cluster import fake_nodes as nodes
from dev.cluster import paths, tools
from tests.e2e.harness import KIND, OPERATOR_NAMESPACE, Kubectl, eventually
from tests.e2e.sharing import SharedTogether, longest_first

ROOT = Path(__file__).parents[2]

Once = Callable[[str, Callable[[], object]], None]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Tests that share something run in one of several processes."""
    return SharedTogether(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that nothing long is left at the end."""
    items.sort(key=lambda item: longest_first(item.nodeid))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove the fake nodes when the last test of all processes is over."""
    first = not hasattr(session.config, "workerinput")
    if first and paths.KUBECONFIG.exists() and nodes.present():
        dev_cluster("fake-nodes", "0")


@pytest.fixture(scope="session")
def once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Does something under a name in one of the processes; the others wait until it is done."""
    run = getattr(request.config, "workerinput", {}).get("testrunuid")
    folder = tmp_path_factory.getbasetemp().parent

    def once(name: str, action: Callable[[], object]) -> None:
        if run is None:
            action()
            return
        done = folder / f"{name}-{run}"
        with FileLock(f"{done}.lock"):
            if not done.exists():
                action()
                done.touch()

    return once


@pytest.fixture(scope="session")
def cluster() -> Kubectl:
    """The development cluster, which ``make test-e2e`` brings up."""
    kubeconfig = paths.KUBECONFIG
    assert kubeconfig.exists(), "no cluster: run `make up` first"
    return Kubectl(str(tools.path("kubectl")), kubeconfig)


@pytest.fixture(scope="session")
def operator(installed: Kubectl) -> Kubectl:
    """The operator in the cluster. Tests that run one of their own call that by this name."""
    return installed


@pytest.fixture(scope="session")
def installed(cluster: Kubectl, once: Once) -> Kubectl:
    """kubectl in the operator's namespace, with the chart installed from this checkout."""
    once("installed", lambda: install(cluster))
    return Kubectl(cluster.binary, cluster.kubeconfig, OPERATOR_NAMESPACE)


def install(cluster: Kubectl) -> None:
    """Install the chart with the values of the demonstration."""
    helm = [
        str(tools.path("helm")), "upgrade", "--install", "llm-operator",
        str(ROOT / "deploy/helm/llm-operator"), f"--kubeconfig={cluster.kubeconfig}",
        f"--namespace={OPERATOR_NAMESPACE}", "--create-namespace",
        f"--values={ROOT / 'dev/demo/values.yaml'}", "--wait", "--timeout=120s",
        # Tests that bring the CRD alone may have been first.
        "--take-ownership", "--force-conflicts",
    ]  # fmt: skip
    done = subprocess.run(helm, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def crd(request: pytest.FixtureRequest, cluster: Kubectl) -> Kubectl:
    """kubectl, with this checkout's CRD in the cluster: by the chart, or alone."""
    if not request.config.getoption("--local-operator"):
        request.getfixturevalue("installed")
        return cluster
    cluster("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "deploy/crds"))
    return cluster


def pytest_addoption(parser: pytest.Parser) -> None:
    """For work on the operator: no image to build, and nothing outside of the test's namespace."""
    parser.addoption(
        "--local-operator",
        action="store_true",
        help="serve each test's namespace by a process of this checkout, without the chart",
    )


@pytest.fixture
def kubectl(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kubectl]:
    """kubectl in a fresh namespace that enforces Pod Security ``restricted`` and is served."""
    with served_namespace(request, tmp_path) as inside:
        yield inside


@contextmanager
def served_namespace(request: pytest.FixtureRequest, folder: Path) -> Iterator[Kubectl]:
    """A fresh namespace that is served, for as long as the caller's fixture lives.

    Args:
        request: of the fixture.
        folder: Where the log of an operator of this checkout is written.
    """
    cluster: Kubectl = request.getfixturevalue("cluster")
    local = request.config.getoption("--local-operator")
    if not local:
        request.getfixturevalue("installed")
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    namespace: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": name,
            "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
        },
    }
    cluster("apply", "-f", "-", stdin=json.dumps(namespace))
    inside = Kubectl(cluster.binary, cluster.kubeconfig, name)
    try:
        with local_operator(name, folder) if local else nullcontext():
            yield inside
    finally:
        # The next test gets the two cores for itself: wait until no pod is left here.
        inside("delete", KIND, "--all", "--wait=false")
        cluster("delete", "namespace", name, "--wait=false")
        eventually(lambda: not inside.items("pods"), within=90)


@contextmanager
def local_operator(
    namespace: str, folder: Path, *, kubeconfig: Path = paths.KUBECONFIG, **settings: str
) -> Iterator[None]:
    """Serve one namespace from this checkout.

    Args:
        namespace: The namespace.
        folder: Where its `operator.log` is written.
        kubeconfig: As whom it speaks to the API server.
        settings: More of its settings, without their prefix.
    """
    values = yaml.safe_load((ROOT / "dev/demo/values.yaml").read_text(encoding="utf-8"))
    image = values["runtime"]["image"]
    environment = {
        "KUBECONFIG": str(kubeconfig),
        "PYTHONPATH": str(ROOT / "operator"),
        "LLM_OPERATOR_STANDALONE": "true",
        "LLM_OPERATOR_WATCH_NAMESPACES": namespace,
        "LLM_OPERATOR_HEALTH_PORT": str(free_port()),
        "LLM_OPERATOR_RUNTIME_IMAGE_REPOSITORY": image["repository"],
        "LLM_OPERATOR_RUNTIME_IMAGE_TAG": image["tag"],
        **{f"LLM_OPERATOR_{name}": value for name, value in settings.items()},
    }
    with (folder / "operator.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "llm_operator"],
            env=os.environ | environment,
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def node(cluster: Kubectl) -> str:
    """The real node's name."""
    nodes = cluster.items("nodes", "-l", "!type")
    assert len(nodes) == 1
    name: str = nodes[0]["metadata"]["name"]
    return name


def dev_cluster(*arguments: str) -> None:
    """Run a command of the development cluster."""
    command = ["python3", "-m", "dev.cluster", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def gpu_node(node: str) -> Iterator[str]:
    """The real node, with two GPUs as the scheduler sees it (no device behind them)."""
    dev_cluster("gpu", "--node", node, "--count", "2", "--product", "NVIDIA-H100-80GB-HBM3")
    yield node
    dev_cluster("gpu", "--node", node, "--count", "0")


@pytest.fixture(scope="session")
def fake_nodes(once: Once) -> None:
    """Two nodes whose pods are Ready without a process behind them."""
    once("fake-nodes", lambda: dev_cluster("fake-nodes", "2"))


@pytest.fixture(scope="session")
def audit_log() -> Path:
    """The API server's record of writes: one JSON object a line."""
    return paths.LOGS / "audit.log"
