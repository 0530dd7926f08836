import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter

from llm_operator.endpoints import Endpoints


class State:
    alive = (True, "leader")
    ready = (False, "leader: waiting for the API")


@pytest.fixture
async def ask():
    registry = CollectorRegistry()
    Counter("x_total", "A count.", registry=registry).inc()
    state = State()
    endpoints = Endpoints(
        port=0, alive=lambda: state.alive, ready=lambda: state.ready, registry=registry
    )

    async with endpoints, aiohttp.ClientSession() as session:

        async def ask(path):
            async with session.get(f"http://127.0.0.1:{endpoints.port}{path}") as answer:
                return answer.status, await answer.text(), answer.headers

        ask.state = state
        yield ask


async def test_probes_say_yes_or_no_and_why(ask):
    assert (await ask("/healthz"))[:2] == (200, "leader\n")
    assert (await ask("/readyz"))[:2] == (503, "leader: waiting for the API\n")
    ask.state.alive = (False, "deaf: pods in all namespaces")
    ask.state.ready = (True, "follower")
    assert (await ask("/healthz"))[:2] == (503, "deaf: pods in all namespaces\n")
    assert (await ask("/readyz"))[:2] == (200, "follower\n")


async def test_metrics_are_in_prometheus_form(ask):
    status, text, headers = await ask("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert "x_total 1.0" in text


async def test_no_connection_outlives_its_answer(ask):
    _, _, headers = await ask("/metrics")
    assert headers["Connection"] == "close"


async def test_there_is_nothing_else(ask):
    assert (await ask("/"))[0] == 404
