"""What becomes of requests and connections when a server is asked to end."""

import json
import threading
import time

import httpx
import pytest

from tests.server.service import service

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
STREAM = {
    "model": SMOLLM2,
    "prompt": "Once upon a time",
    "max_tokens": 60,
    "temperature": 0,
    "stream": True,
}
SHORT = {**STREAM, "max_tokens": 2, "stream": False}


def smollm2_settings(directory, **more):
    return {"LLM_MODEL_ID": SMOLLM2, "LLM_MODEL_DIR": str(directory), **more}


def until(holds, seconds=30):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def not_ready(server):
    with httpx.Client(base_url=server.url) as client:
        until(lambda: client.get("/readyz").status_code == 503, 5)


def test_a_stream_outlives_sigterm_and_late_requests_are_served(start, smollm2_dir):
    server = start(**smollm2_settings(smollm2_dir)).wait()
    with server.client.stream("POST", "/v1/completions", json=STREAM) as response:
        lines = (line for line in response.iter_lines() if line)
        received = [next(lines)]
        server.terminate()
        not_ready(server)
        with httpx.Client(base_url=server.url, timeout=60) as other:
            assert other.get("/startupz").json()["phase"] == "draining"
            assert other.get("/livez").status_code == 200
            late = other.post("/v1/completions", json=SHORT)
            assert late.status_code == 200
            for answer in (late, other.get("/metrics"), other.get("/readyz")):
                assert answer.headers["connection"] == "close"
        received.extend(lines)
    assert received[-1] == "data: [DONE]"
    last = json.loads(received[-2].removeprefix("data: "))
    assert last["choices"][0]["finish_reason"] in ("length", "stop")
    assert len(received) > 20
    assert server.exit_code(20) == 0


def test_draining_ends_in_time_and_tells_the_client(start, smollm2_dir):
    server = start(**smollm2_settings(smollm2_dir, LLM_DRAIN_SECONDS="1")).wait()
    ask = {**STREAM, "max_tokens": 8000, "temperature": 1.3, "seed": 1}
    with server.client.stream("POST", "/v1/completions", json=ask) as response:
        lines = (line for line in response.iter_lines() if line)
        next(lines)
        server.terminate()
        *_, last = lines
    assert "shutting down" in json.loads(last.removeprefix("data: "))["error"]["message"]
    assert server.exit_code(15) == 0


def test_clients_that_do_not_go_away_cannot_hold_the_server(start, smollm2_dir):
    server = start(**smollm2_settings(smollm2_dir, LLM_DRAIN_SECONDS="6")).wait()
    server.terminate()
    began = time.monotonic()
    while server.process.poll() is None:
        assert time.monotonic() - began < 20
        try:
            httpx.post(f"{server.url}/v1/completions", json=SHORT, timeout=20)
        except httpx.TransportError:
            break
    assert server.exit_code(10) == 0


def test_an_idle_connection_is_kept_until_the_end(start, smollm2_dir):
    """Nobody is told to go on a connection that is silent; it is served when it is not."""
    server = start(**smollm2_settings(smollm2_dir)).wait()
    server.client.get("/livez")
    server.terminate()
    not_ready(server)
    time.sleep(0.5)
    answer = server.client.post("/v1/completions", json=SHORT)
    assert answer.status_code == 200
    assert answer.headers["connection"] == "close"
    assert server.exit_code(20) == 0


class Client(threading.Thread):
    """Asks again and again over a connection that it keeps for as long as the server does."""

    def __init__(self, url):
        super().__init__()
        self.url = url
        self.over = threading.Event()
        self.statuses, self.failures, self.partings = [], [], 0

    def run(self):
        with httpx.Client(base_url=self.url, timeout=240) as client:
            while not self.over.is_set():
                try:
                    answer = client.post("/v1/completions", json=SHORT)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                else:
                    self.statuses.append(answer.status_code)
                    self.partings += answer.headers.get("connection") == "close"
                self.over.wait(0.05)


class Listener(threading.Thread):
    """Reads one long stream."""

    def __init__(self, url):
        super().__init__()
        self.url = url
        self.lines = []

    def run(self):
        ask = {**STREAM, "max_tokens": 60, "prompt": "The history of the city begins"}
        with httpx.stream("POST", f"{self.url}/v1/completions", json=ask, timeout=240) as answer:
            for line in answer.iter_lines():
                if line:
                    self.lines.append(line)


@pytest.fixture
def two_servers(start, smollm2_dir):
    # One after the other: they share two processors.
    bounds = {"LLM_THREADS": "1", "LLM_MAX_LENGTH": "512", "LLM_DRAIN_SECONDS": "600"}
    settings = smollm2_settings(smollm2_dir, **bounds)
    return start(**settings).wait(), start(**settings).wait()


def test_no_request_is_lost_when_one_of_two_servers_ends(two_servers):
    """Connections stay with a server that ends; new ones go elsewhere once it is not ready."""
    old, new = two_servers
    with service(old.port) as front:
        url = f"http://127.0.0.1:{front.port}"
        clients = [Client(url) for _ in range(6)]
        listeners = [Listener(url) for _ in range(3)]
        for thread in (*clients, *listeners):
            thread.start()
        until(lambda: all(len(client.statuses) >= 2 for client in clients), 240)
        until(lambda: all(len(listener.lines) >= 3 for listener in listeners), 240)
        assert set(front.opened) == {old.port}

        old.terminate()
        not_ready(old)
        # Endpoints are told some time later: new connections still come meanwhile.
        time.sleep(1)
        before = [len(client.statuses) for client in clients]
        front.target = new.port

        assert old.exit_code(600) == 0
        until(
            lambda: all(
                len(client.statuses) >= count + 3
                for client, count in zip(clients, before, strict=True)
            ),
            240,
        )
        for client in clients:
            client.over.set()
        for thread in (*clients, *listeners):
            thread.join()
    assert [client.failures for client in clients] == [[]] * len(clients)
    assert {status for client in clients for status in client.statuses} == {200}
    assert all(client.partings for client in clients)
    assert new.port in front.opened
    for listener in listeners:
        assert listener.lines[-1] == "data: [DONE]"
        assert json.loads(listener.lines[-2].removeprefix("data: "))["choices"][0]["finish_reason"]
