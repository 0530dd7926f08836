"""Processes: how they are started, watched and ended, and what memory they take."""

import json
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.serving import memory
from bench.serving.servers import (
    Server,
    ServerError,
    get,
    running,
    target,
    wait_until_ready,
)

SERVE = """
import http.server, json, subprocess, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"data": [{"id": "served"}]}).encode()
        self.send_response(200 if self.path != "/missing" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[2], "w").write(str(child.pid))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Page).serve_forever()
"""


@pytest.fixture
def server(tmp_path):
    command = (sys.executable, "-c", SERVE, "{port}", str(tmp_path / "child"))
    return Server("some", command=command, ready="/health")


def alive(pid):
    """Whether a process runs; one that has ended and not been collected does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_server_is_started_asked_and_ended_with_its_children(server, tmp_path):
    with running(server) as at:
        assert wait_until_ready(server, at) > 0
        assert target(server, at).model == "served"
        assert get(at.url, "/missing")[0] == 404
        child = int((tmp_path / "child").read_text())
        assert alive(child)
    assert get(at.url, "/health") == (0, b"")
    assert at.process.poll() is not None
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(child)


def test_a_server_that_ends_is_told_with_its_last_line():
    broken = Server("broken", command=(sys.executable, "-c", "print('first'); exit('no model')"))
    with running(broken) as at, pytest.raises(ServerError, match="broken ended with 1: no model"):
        wait_until_ready(broken, at)


def test_one_that_runs_already_is_left_alone(server):
    with running(server) as at:
        wait_until_ready(server, at)
        with running(Server("same", url=at.url, ready="/v1/models")) as again:
            assert again.process is None
        assert get(at.url, "/health")[0] == 200


def test_memory_counts_children_and_tells_allocated_from_mapped(tmp_path):
    size = 64 << 20
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(size))
    child = (
        f"import mmap, time; kept = bytearray(b'x') * {size}; f = open({str(file)!r}, 'rb');"
        f"m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ);"
        f"sum(m[i] for i in range(0, {size}, {mmap.PAGESIZE})); print('there', flush=True);"
        "time.sleep(600)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    command = [sys.executable, "-c", parent]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout.readline() == "there\n"
            seen = memory.of_tree(process.pid)
        finally:
            os.killpg(process.pid, 9)
    assert size <= seen.anonymous < size + (64 << 20)
    assert size <= seen.file < size + (64 << 20)
    assert seen.total >= seen.anonymous + seen.file


def test_a_cache_is_as_large_as_heads_and_layers_say(tmp_path):
    config = {"hidden_size": 576, "num_attention_heads": 9, "num_hidden_layers": 30}
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**config, "num_key_value_heads": 3}))
    assert memory.cache_bytes_per_token(tmp_path) == 2 * 2 * 30 * 3 * 64
    file.write_text(json.dumps({**config, "head_dim": 32}))
    assert memory.cache_bytes_per_token(tmp_path) == 2 * 2 * 30 * 9 * 32
