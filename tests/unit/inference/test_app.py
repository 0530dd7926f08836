"""The application over an engine that is told what to do: what its failures look like outside."""

import json
from contextlib import asynccontextmanager

import httpx
import pytest

from llm_inference.app import create_app
from llm_inference.engine.directory import ModelLoadError
from llm_inference.engine.interface import EngineClosedError, FinishReason, TokenEvent
from llm_inference.health import Health, Phase
from llm_inference.serving import Serving
from llm_inference.settings import Settings
from tests.unit.inference.told_engine import Engine


def text(piece, tokens, reason=None, error=None):
    return TokenEvent(index=0, text=piece, tokens=tokens, finish_reason=reason, error=error)


ANSWER = (text("Hello", 1), text(" there", 2), text("", 3, FinishReason.STOP))
BROKEN = (text("Hello", 1), text("", 1, FinishReason.ERROR, "The model failed."))
ASK = {"model": "m", "prompt": "two words"}


@asynccontextmanager
async def client_for(engine, *, phases=3):
    serving = Serving(Settings(served_name="m"), Health(), load=lambda _: engine)
    for phase in (Phase.LOADING, Phase.WARMING)[:phases]:
        serving.health.enter(phase)
    serving._serve(engine)
    transport = httpx.ASGITransport(create_app(serving), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        client.serving = serving
        yield client


async def test_an_answer():
    engine = Engine(ANSWER)
    async with client_for(engine) as client:
        answer = await client.post("/v1/completions", json={**ASK, "max_tokens": 9})
    assert answer.json()["choices"] == [
        {"index": 0, "text": "Hello there", "logprobs": None, "finish_reason": "stop"}
    ]
    assert answer.json()["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 3,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert engine.requests[0].max_tokens == 9
    assert engine.streams[0].cancelled


async def test_a_failure_in_the_engine_is_500_in_openais_shape():
    async with client_for(Engine(BROKEN)) as client:
        answer = await client.post("/v1/completions", json=ASK)
    assert answer.status_code == 500
    assert answer.json()["error"] == {
        "message": "The model failed.",
        "type": "server_error",
        "param": None,
        "code": None,
    }


async def test_a_failure_in_a_stream_is_told_in_it_and_it_is_not_done():
    engine = Engine(BROKEN)
    async with client_for(engine) as client:
        answer = await client.post("/v1/completions", json={**ASK, "stream": True})
    chunks = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert json.loads(chunks[0])["choices"][0]["text"] == "Hello"
    assert json.loads(chunks[-1])["error"]["message"] == "The model failed."
    assert "[DONE]" not in answer.text
    assert engine.streams[0].cancelled


async def test_a_bug_of_ours_is_500_in_openais_shape():
    async with client_for(Engine(refusal=KeyError("bug"))) as client:
        answer = await client.post("/v1/completions", json=ASK)
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "bug" not in answer.text


async def test_a_closing_engine_is_503():
    refusal = EngineClosedError("The engine serves no more requests.")
    async with client_for(Engine(refusal=refusal)) as client:
        answer = await client.post("/v1/completions", json=ASK)
    assert answer.status_code == 503


async def test_a_model_without_a_chat_template_says_what_to_use():
    messages = [{"role": "user", "content": "a"}]
    async with client_for(Engine(ANSWER)) as client:
        answer = await client.post(
            "/v1/chat/completions", json={"model": "m", "messages": messages}
        )
    assert answer.status_code == 400
    assert "/v1/completions" in answer.json()["error"]["message"]


async def test_a_dead_engine_fails_liveness():
    engine = Engine(ANSWER)
    async with client_for(engine) as client:
        alive = await client.get("/livez")
        engine.alive = False
        statuses = [
            (await client.get(path)).status_code for path in ("/livez", "/readyz", "/health")
        ]
        refused = await client.post("/v1/completions", json=ASK)
    assert alive.status_code == 200
    assert statuses == [503, 503, 503]
    assert "failed" in refused.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz"])
async def test_while_loading_only_liveness_holds(path):
    async with client_for(Engine(), phases=1) as client:
        assert (await client.get(path)).status_code == (200 if path == "/livez" else 503)


async def test_the_load_of_the_engine_is_published():
    async with client_for(Engine()) as client:
        metrics = (await client.get("/metrics")).text
    assert 'vllm:num_requests_running{model_name="m"} 1.0' in metrics
    assert 'vllm:num_requests_waiting{model_name="m"} 2.0' in metrics
    assert 'vllm:kv_cache_usage_perc{model_name="m"} 0.5' in metrics


async def test_draining_waits_for_what_runs():
    serving = Serving(Settings(drain_seconds=0.2), Health(), load=lambda _: Engine())
    with serving.request():
        await serving.drain()  # gives up after its time
    assert serving.finished.is_set()


async def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_reason():
    def fail(_):
        raise ModelLoadError("no weights")

    serving = Serving(Settings(), Health(), load=fail)
    serving.start_loading()
    await serving.finished.wait()
    assert serving.health.error == "no weights"
    assert not serving.alive
