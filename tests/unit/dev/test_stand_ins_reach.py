"""Stand-ins are used only for what gives no answer."""

import http.server
import threading

import pytest

from dev.stand_ins import reach
from dev.stand_ins.reach import Real


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    for real in Real:
        monkeypatch.delenv(real.variable, raising=False)
    reach._answers.cache_clear()
    yield
    reach._answers.cache_clear()


@pytest.fixture
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(int(self.path[1:]))
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


@pytest.mark.parametrize(
    ("status", "there"), [(200, True), (401, True), (403, False), (502, False)]
)
def test_an_answer_decides(server, status, there):
    assert reach._answers_at(f"{server}/{status}") is there


def test_no_answer_at_all_is_not_there():
    assert not reach._answers_at("http://127.0.0.1:1/")


def test_each_is_tried_once_a_run_and_said_once(monkeypatch, capsys):
    tried = []
    monkeypatch.setattr(reach, "_answers_at", lambda address: tried.append(address) or False)
    for _ in range(3):
        assert not any(reach.is_reachable(real) for real in Real)
    assert sorted(tried) == sorted(real.address for real in Real)
    assert capsys.readouterr().out.count("a stand-in takes its place") == len(Real)


def test_a_mirror_of_ones_own_is_used_untried(monkeypatch):
    monkeypatch.setattr(reach, "_answers_at", lambda _: pytest.fail("tried"))
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    assert reach.is_reachable(Real.HUB)
