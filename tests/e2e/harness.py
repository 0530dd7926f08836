"""What the end-to-end tests speak to the cluster with.

Knows kubectl, how to wait and how to send a request through a Service.
Does not know what any test expects.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

T = TypeVar("T")

KIND = "llmdeployments.llm-operator.dev"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
OPERATOR_NAMESPACE = "llm-operator-system"
OPERATOR_USER = f"system:serviceaccount:{OPERATOR_NAMESPACE}:llm-operator"
WRITE_VERBS = frozenset({"create", "update", "patch", "delete", "deletecollection"})

# Where fake nodes take pods: they never start a process, so a test can have many of them.
ON_FAKE_NODES: dict[str, Any] = {
    "nodeSelector": {"type": "kwok"},
    "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists", "effect": "NoSchedule"}],
}


class CommandError(AssertionError):
    """A command failed; the message is what it printed."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl against one cluster.

    Attributes:
        binary: The program.
        kubeconfig: The cluster's credentials.
        namespace: Where namespaced objects are looked for.
    """

    binary: str
    kubeconfig: Path
    namespace: str = "default"

    def __call__(self, *args: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Run kubectl and return what it printed.

        Raises:
            CommandError: It exited non-zero; the message is its stderr.
        """
        command = [self.binary, f"--kubeconfig={self.kubeconfig}", "-n", self.namespace, *args]
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode:
            raise CommandError(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    def json(self, *args: str) -> dict[str, Any]:
        """Run kubectl with ``-o json``."""
        answer: dict[str, Any] = json.loads(self(*args, "-o", "json"))
        return answer

    def apply(self, *manifests: dict[str, Any]) -> str:
        """Apply manifests as a user would, in one call."""
        documents = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        return self("apply", "-f", "-", stdin=json.dumps(documents))

    def items(self, *args: str) -> list[dict[str, Any]]:
        """List objects."""
        listed: list[dict[str, Any]] = self.json("get", *args)["items"]
        return listed

    def exists(self, *args: str) -> bool:
        """Whether an object is there."""
        return bool(self("get", "--ignore-not-found", "-o", "name", *args).strip())

    def pods_of(self, name: str) -> list[dict[str, Any]]:
        """The pods of one LLMDeployment that are not being deleted, newest first."""
        pods = self.items("pods", "-l", f"app.kubernetes.io/instance={name}")
        alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        return sorted(alive, key=lambda pod: pod["metadata"]["creationTimestamp"], reverse=True)

    def service_url(self, name: str) -> str:
        """Where a Service answers, reachable from this machine through kube-proxy."""
        spec = self.json("get", "service", name)["spec"]
        return f"http://{spec['clusterIP']}:{spec['ports'][0]['port']}"

    def wait_ready(self, name: str, timeout: float = 240) -> None:
        """Wait for ``Ready`` as a user would; on a time-out say what the status says."""
        try:
            self(
                "wait", "--for=condition=Ready", f"llmdeployment/{name}",
                f"--timeout={timeout:.0f}s", timeout=timeout + 30,
            )  # fmt: skip
        except CommandError as error:
            status = self.json("get", KIND, name).get("status")
            raise CommandError(f"{error}; status: {json.dumps(status)}") from error


def llm_deployment(name: str, **spec: Any) -> dict[str, Any]:
    """An LLMDeployment of the model that the development images hold."""
    return {
        "apiVersion": "llm-operator.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": name},
        "spec": {"model": {"id": MODEL}, **spec},
    }


def condition(resource: dict[str, Any], kind: str) -> dict[str, Any]:
    """One condition of a resource; empty when it is not there."""
    conditions = resource.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == kind), {})


def eventually(look: Callable[[], T], *, within: float, every: float = 0.5) -> T:
    """Call ``look`` until it returns something true without an AssertionError.

    Raises:
        AssertionError: The last one raised, or that nothing true was seen, ``within`` seconds.
    """
    deadline = time.monotonic() + within
    while True:
        failure: AssertionError
        try:
            if seen := look():
                return seen
            failure = AssertionError(f"nothing seen, last: {seen!r}")
        except AssertionError as error:
            failure = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s: {failure}") from failure
        time.sleep(every)


@dataclass
class Traffic:
    """What became of a stream of requests."""

    answered: int = 0
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def chat(url: str, question: str, *, timeout: float = 60, **parameters: Any) -> str:
    """Ask the model over a fresh connection, as a new client would.

    Raises:
        httpx.HTTPError: No answer, or one that is no success.
    """
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 32,
        **parameters,
    }
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=timeout)
    answer.raise_for_status()
    content: str = answer.json()["choices"][0]["message"]["content"]
    return content


@contextmanager
def steady_traffic(url: str, *, clients: int = 2, pause: float = 0.1) -> Iterator[Traffic]:
    """Keep ``clients`` asking short questions until the block ends."""
    traffic, over = Traffic(), threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                chat(url, "Say yes.", max_tokens=4)
            except httpx.HTTPError as error:
                with traffic.lock:
                    traffic.failures.append(repr(error))
            else:
                with traffic.lock:
                    traffic.answered += 1
            over.wait(pause)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield traffic
    finally:
        over.set()
        for thread in threads:
            thread.join(timeout=70)
