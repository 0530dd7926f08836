"""What operations rely on: traces, log lines, a watchdog and bounds, with real models."""

import asyncio
import json
import threading
import time
from contextlib import asynccontextmanager

import httpx
import pytest

from llm_inference.app import create_app
from llm_inference.health import Health
from llm_inference.serving import Serving
from llm_inference.settings import Settings
from tests.server.conftest import MINILM, SMOLLM2
from tests.unit.inference.collector import collector

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_request_is_traced_and_logged_until_the_server_has_drained(start, smollm2_dir):
    with collector() as sent:
        server = start(
            LLM_MODEL_ID=SMOLLM2,
            LLM_MODEL_DIR=str(smollm2_dir),
            OTEL_EXPORTER_OTLP_ENDPOINT=sent.url,
            # Only the end of the server makes it send.
            OTEL_BSP_SCHEDULE_DELAY="3600000",
        ).wait()
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "r1"}
        server.client.headers.update(headers)
        answer = server.chat("A private matter.", max_tokens=8)
        assert answer.status_code == 200
        assert answer.headers["x-request-id"] == "r1"
        assert not sent.came.is_set()
        server.terminate()
        assert server.exit_code() == 0
        assert sent.came.is_set()
    usage = answer.json()["usage"]
    root = sent.attributes(f"chat {SMOLLM2}")
    assert root["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert root["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert sent.named(f"chat {SMOLLM2}").trace_id.hex() == TRACE
    assert {"queue", "prefill", "decode"} <= {span.name for span in sent.spans}

    lines = [json.loads(line) for line in server.stderr().splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == "r1"]
    assert line["trace_id"] == TRACE
    assert line["prompt_tokens"] == usage["prompt_tokens"]
    assert line["completion_tokens"] == usage["completion_tokens"]
    assert 0 < line["time_to_first_token"] <= line["seconds"]
    assert "private" not in server.stderr()


def test_a_collector_that_is_gone_hurts_no_request(start, minilm_dir):
    with collector() as gone:
        pass
    server = start(
        LLM_MODEL_ID=MINILM,
        LLM_MODEL_DIR=str(minilm_dir),
        OTEL_EXPORTER_OTLP_ENDPOINT=gone.url,
        OTEL_BSP_SCHEDULE_DELAY="50",
        LLM_LOG_FORMAT="text",
        LLM_MAX_BODY_BYTES="1024",
    ).wait()
    ask = {"model": MINILM, "input": "a"}
    for _ in range(5):
        assert server.client.post("/v1/embeddings", json=ask).status_code == 200
        time.sleep(0.05)
    large = server.client.post("/v1/embeddings", json={**ask, "input": "a" * 2000})
    assert large.status_code == 413
    assert "1024" in large.json()["error"]["message"]
    assert server.client.post("/v1/embeddings", json=ask).status_code == 200
    server.terminate()
    began = time.monotonic()
    assert server.exit_code() == 0
    assert time.monotonic() - began < 10
    assert "/v1/embeddings 413" in server.stderr()


@asynccontextmanager
async def served(directory, **settings):
    """The application with a real engine, in this process, so that its model can be held."""
    serving = Serving(Settings(model_dir=directory, threads=1, **settings), Health())
    app = create_app(serving)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://server") as client,
    ):
        async with asyncio.timeout(120):
            while not serving.ready:  # noqa: ASYNC110 - it is loaded in a thread
                await asyncio.sleep(0.05)
        yield serving, client


async def until(client, path, status):
    async with asyncio.timeout(20):
        while (await client.get(path)).status_code != status:  # noqa: ASYNC110 - a probe
            await asyncio.sleep(0.02)


@pytest.fixture
def stuck():
    """What a model that hangs waits for."""
    event = threading.Event()
    yield event
    event.set()


async def test_a_step_that_hangs_fails_liveness_until_it_ends(minilm_dir, stuck, caplog):
    async with served(minilm_dir, step_timeout_seconds=0.3) as (serving, client):
        ask = {"model": serving.model_name, "input": "a"}
        assert (await client.post("/v1/embeddings", json=ask)).status_code == 200
        model = serving.engine._model
        hook = model.register_forward_hook(lambda *_: stuck.wait(60) and None)
        waiting = asyncio.create_task(client.post("/v1/embeddings", json=ask))
        await until(client, "/livez", 503)
        assert (await client.get("/readyz")).status_code == 503
        refused = await client.post("/v1/embeddings", json=ask)
        assert refused.status_code == 503
        assert "failed" in refused.json()["error"]["message"]
        assert "is taken to hang" in caplog.text
        hook.remove()
        stuck.set()
        assert (await waiting).status_code == 200
        await until(client, "/livez", 200)


async def test_a_decode_step_that_hangs_fails_liveness(smollm2_dir, stuck):
    async with served(smollm2_dir, step_timeout_seconds=0.5, max_length=128, max_concurrency=2) as (
        serving,
        client,
    ):
        ask = {"model": serving.model_name, "prompt": "Once", "max_tokens": 4}
        assert (await client.post("/v1/completions", json=ask)).status_code == 200
        assert (await client.get("/livez")).status_code == 200
        runner = serving.engine._scheduler._runner
        decode = runner.decode

        def hang(*arguments, **more):
            stuck.wait(60)
            return decode(*arguments, **more)

        runner.decode = hang
        waiting = asyncio.create_task(client.post("/v1/completions", json=ask))
        await until(client, "/livez", 503)
        stuck.set()
        assert (await waiting).status_code == 200
        await until(client, "/livez", 200)


async def test_a_server_whose_engine_hangs_still_ends(minilm_dir, stuck, monkeypatch, caplog):
    monkeypatch.setattr("llm_inference.serving._CLOSE_SECONDS", 0.2)
    async with served(minilm_dir, drain_seconds=0.2) as (serving, client):
        serving.engine._model.register_forward_hook(lambda *_: stuck.wait(60) and None)
        ask = {"model": serving.model_name, "input": "a"}
        waiting = asyncio.create_task(client.post("/v1/embeddings", json=ask))
        async with asyncio.timeout(10):
            while not serving.engine.stalled_seconds:  # noqa: ASYNC110 - in a thread
                await asyncio.sleep(0.01)
            await serving.drain()
        assert serving.finished.is_set()
        assert "does not stop" in caplog.text
        stuck.set()
        await waiting
