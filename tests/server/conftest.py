"""Real servers, each a process of its own, with the real SmolLM2 and MiniLM."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

# Before torch is imported here: the tests and the servers share the same processors.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
CHECKOUT = Path(__file__).resolve().parents[2]
START_SECONDS = 180


def model_directory(model_id):
    cache = os.environ.get("LLM_OPERATOR_CACHE")
    if cache is None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache = Path(base) / "llm-operator"
    directory = Path(cache) / "models" / model_id
    if not directory.is_dir():
        pytest.fail(f"{directory} is missing: python3 -m dev.stand_ins models")
    return directory


class Server:
    """A server process, with a client for it."""

    def __init__(self, log, **settings):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.model = settings.get("LLM_SERVED_NAME") or settings.get("LLM_MODEL_ID")
        self.log = log
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(CHECKOUT / "inference"),
            "LLM_HOST": "127.0.0.1",
            "LLM_PORT": str(self.port),
            **settings,
        }
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "llm_inference"],
                env=environment,
                stderr=stderr,
                stdout=subprocess.DEVNULL,
            )
        self.client = httpx.Client(base_url=self.url, timeout=120)

    def wait(self, path="/readyz", seconds=START_SECONDS):
        """Wait until a probe says 200."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                pytest.fail(f"the server ended: {self.stderr()}")
            try:
                if self.client.get(path).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        pytest.fail(f"{path} was not 200 within {seconds} s: {self.stderr()}")
        return None

    def wait_for_http(self):
        """Wait until anything is answered."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                return self.client.get("/livez")
            except httpx.TransportError:
                time.sleep(0.01)
        pytest.fail("no HTTP within 30 s")
        return None

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def exit_code(self, seconds=60):
        return self.process.wait(timeout=seconds)

    def stderr(self):
        return self.log.read_text(encoding="utf-8", errors="replace")

    def metric(self, name, **labels):
        """Sum of the samples of a metric that have these labels."""
        total = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            match = re.match(rf"{re.escape(name)}(?:\{{(.*)\}})? (\S+)$", line)
            if match and all(f'{key}="{value}"' in match[1] for key, value in labels.items()):
                total += float(match[2])
        return total

    def chat(self, content="What is the capital of France?", **more):
        """POST a chat completion."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            **more,
        }
        return self.client.post("/v1/chat/completions", json=body)

    def complete(self, prompt, **more):
        """POST a text completion."""
        body = {"model": self.model, "prompt": prompt, "temperature": 0, **more}
        return self.client.post("/v1/completions", json=body)

    def stop(self):
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextmanager
def running(log, **settings):
    server = Server(log, **settings)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def smollm2_dir():
    return model_directory(SMOLLM2)


@pytest.fixture(scope="session")
def minilm_dir():
    return model_directory(MINILM)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory, smollm2_dir):
    """SmolLM2 in float32, so that results can be compared exactly; small bounds to reach them."""
    log = tmp_path_factory.mktemp("smollm2") / "stderr"
    settings = {
        "LLM_MODEL_ID": SMOLLM2,
        "LLM_MODEL_DIR": str(smollm2_dir),
        "LLM_DTYPE": "float32",
        "LLM_MAX_LENGTH": "1024",
        "LLM_MAX_CONCURRENCY": "6",
        "LLM_MAX_QUEUE": "4",
    }
    with running(log, **settings) as server:
        yield server.wait()


@pytest.fixture(scope="session")
def minilm(tmp_path_factory, minilm_dir):
    log = tmp_path_factory.mktemp("minilm") / "stderr"
    settings = {"LLM_MODEL_ID": MINILM, "LLM_MODEL_DIR": str(minilm_dir)}
    with running(log, **settings) as server:
        yield server.wait()


@pytest.fixture(scope="module")
def begin_server():
    """Start a server that all tests of a module share, and wait until it serves."""
    with ExitStack() as servers:
        yield lambda log, **settings: servers.enter_context(running(log, **settings)).wait()


@pytest.fixture
def start(tmp_path):
    """Start a server that is this test's own."""
    servers = []

    def begin(**settings):
        server = Server(tmp_path / f"stderr-{len(servers)}", **settings)
        servers.append(server)
        return server

    yield begin
    for server in servers:
        server.stop()
