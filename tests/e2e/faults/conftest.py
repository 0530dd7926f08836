"""A namespace without other operators, the proxy, and an operator to be harmed."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.faults.operator_process import OperatorProcess, grant
from tests.e2e.faults.proxy import Proxy
from tests.e2e.harness import KIND, Kubectl, eventually
from tests.e2e.solitude import alone

SEED = 20

Start = Callable[..., OperatorProcess]


@pytest.fixture(scope="module", autouse=True)
def _alone(crd: Kubectl) -> Iterator[None]:
    """The CRD is there, and no other operator serves the tests' namespaces."""
    with alone(crd):
        yield


@pytest.fixture
def kubectl(cluster: Kubectl) -> Iterator[Kubectl]:
    """kubectl in a fresh namespace that nobody serves yet."""
    name = f"faults-{uuid.uuid4().hex[:8]}"
    cluster("create", "namespace", name)
    inside = Kubectl(cluster.binary, cluster.kubeconfig, name)
    yield inside
    inside("delete", KIND, "--all", "--wait=false")
    cluster("delete", "namespace", name, "--wait=false")
    eventually(lambda: not inside.items("pods"), within=90)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """The way to the API server."""
    with Proxy(seed=SEED) as proxy:
        yield proxy


@pytest.fixture
def start(kubectl: Kubectl, proxy: Proxy, tmp_path: Path) -> Iterator[Start]:
    """Starts an operator under a name, with more settings as keyword arguments, and awaits it."""
    token = grant(kubectl)
    started: list[OperatorProcess] = []

    def start(name: str = "operator", *, wait: bool = True, **settings: str) -> OperatorProcess:
        operator = OperatorProcess(
            way=proxy.client(name),
            namespace=kubectl.namespace,
            token=token,
            folder=tmp_path,
            settings={f"LLM_OPERATOR_{key.upper()}": text for key, text in settings.items()},
        )
        started.append(operator)
        operator.start()
        if wait:
            operator.wait_until_it_works()
        return operator

    yield start
    for operator in started:
        operator.stop()
        print(operator.last_words())  # shown when the test failed


@pytest.fixture
def operator(start: Start) -> OperatorProcess:
    """One operator that works, and lists everything every few seconds."""
    return start(standalone="true", resync_seconds="10")
