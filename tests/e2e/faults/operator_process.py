"""The operator as a process of this machine, so that it can be cut off, killed and run twice.

It speaks to the API server through a proxy, with the rights that the chart would give it, and
serves one namespace. Knows how it starts, when it works and how it ends; nothing of what it does.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from dev.cluster import certificates, tools
from tests.e2e.faults.proxy import Client
from tests.e2e.harness import Kubectl

ROOT = Path(__file__).parents[3]
RELEASE = "llm-operator"
IMAGES = {
    "LLM_OPERATOR_RUNTIME_IMAGE_REPOSITORY": "localhost/llm-inference",
    "LLM_OPERATOR_RUNTIME_IMAGE_TAG": "smollm2",
    "LLM_OPERATOR_RUNTIME_IMAGE_PULL_POLICY": "IfNotPresent",
}
_RIGHTS = frozenset({"ServiceAccount", "Role", "RoleBinding"})
_TAIL_LINES = 30


def grant(kubectl: Kubectl) -> str:
    """Give the operator's account the chart's rights in a namespace. Returns a token of it."""
    command = [
        str(tools.path("helm")), "template", RELEASE, str(ROOT / "deploy/helm/llm-operator"),
        f"--namespace={kubectl.namespace}", f"--set=watchNamespaces={{{kubectl.namespace}}}",
        "--set=image.repository=none,watchNodes=false,rbac.aggregate=false,crds.enabled=false",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    objects = [each for each in yaml.safe_load_all(done.stdout) if each]
    kubectl.apply(*(each for each in objects if each["kind"] in _RIGHTS))
    return kubectl("create", "token", RELEASE, "--duration=1h").strip()


@dataclass
class OperatorProcess:
    """One operator.

    Attributes:
        way: Its way to the API server.
        namespace: What it serves, and where its own lease is.
        token: Who it is to the API server.
        folder: Where its kubeconfig and its log lie.
        settings: More of its environment variables.
        code: The folder that holds the package to run.
        exits: Exit codes of the times it ended by itself. It was started again each time, after
            a second, as the kubelet would.
    """

    way: Client
    namespace: str
    token: str
    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    code: Path = ROOT / "operator"
    exits: list[int] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None
    _port: int = 0
    _keeper: threading.Thread | None = None
    _unwanted: threading.Event = field(default_factory=threading.Event)

    @property
    def log(self) -> Path:
        """What it printed, over all its lives."""
        return self.folder / f"operator-{self.way.name}.log"

    def start(self) -> None:
        """Start it. Returns before it works: see `wait_until_it_works`."""
        kubeconfig = self.folder / f"{self.way.name}.kubeconfig"
        kubeconfig.write_text(json.dumps(self._kubeconfig()))
        self._port = _free_port()
        self._unwanted = threading.Event()
        self._spawn(kubeconfig)
        self._keeper = threading.Thread(
            target=self._keep, args=(kubeconfig, self._unwanted), daemon=True
        )
        self._keeper.start()

    def _spawn(self, kubeconfig: Path) -> None:
        own = {
            "KUBECONFIG": str(kubeconfig),
            "PYTHONPATH": str(self.code),
            "LLM_OPERATOR_NAMESPACE": self.namespace,
            "LLM_OPERATOR_WATCH_NAMESPACES": self.namespace,
            "LLM_OPERATOR_WATCH_NODES": "false",
            "LLM_OPERATOR_HEALTH_PORT": str(self._port),
        }
        inherited = {n: v for n, v in os.environ.items() if not n.startswith("LLM_OPERATOR_")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "llm_operator"],
                env=inherited | IMAGES | own | self.settings,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )

    def _keep(self, kubeconfig: Path, unwanted: threading.Event) -> None:
        """Start it again whenever it ends by itself."""
        while not unwanted.is_set():
            process = self._process
            assert process is not None
            code = process.wait()
            if unwanted.wait(1):
                return
            self.exits.append(code)
            self._spawn(kubeconfig)

    def wait_until_it_works(self, *, within: float = 30) -> None:
        """Wait until its health endpoint answers, which it does once it knows everything."""
        deadline = time.monotonic() + within
        while not self.works():
            assert time.monotonic() < deadline, f"it does not work:\n{self.last_words()}"
            time.sleep(0.1)

    def works(self) -> bool:
        """Whether its health endpoint answers with success."""
        try:
            answer = httpx.get(f"http://127.0.0.1:{self._port}/healthz", timeout=2)
        except httpx.HTTPError:
            return False
        return answer.is_success

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs."""
        assert self._process is not None
        return self._process.poll()

    @property
    def pid(self) -> int:
        """The process that runs now, or ran last."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End it at once, wherever it is."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end, as the kubelet would; end it if it does not."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Start it anew and wait until it works."""
        self.start()
        self.wait_until_it_works()

    def last_words(self) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])

    def _end(self, how: signal.Signals) -> None:
        self._unwanted.set()
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(how)
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=15)
        if self._keeper is not None:
            self._keeper.join(timeout=15)

    def _kubeconfig(self) -> dict[str, Any]:
        context = {"cluster": "proxy", "user": RELEASE, "namespace": self.namespace}
        cluster = {"server": self.way.url, "certificate-authority": str(certificates.CLUSTER_CA)}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "proxy",
            "contexts": [{"name": "proxy", "context": context}],
            "clusters": [{"name": "proxy", "cluster": cluster}],
            "users": [{"name": RELEASE, "user": {"token": self.token}}],
        }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
