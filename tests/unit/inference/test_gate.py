"""The gate over an application that echoes: bounds, ids, log lines, and who it says asks."""

import asyncio
import hashlib
import json
import logging
from contextlib import asynccontextmanager
from types import SimpleNamespace

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from llm_inference import logs
from llm_inference.app import create_app
from llm_inference.body import MAX_DEPTH
from llm_inference.engine.interface import (
    Capacity,
    FinishReason,
    GenerationEngine,
    GenerationRequest,
    Load,
    TokenEvent,
)
from llm_inference.gate import API, Gate
from llm_inference.gate import ROUTES as ROUTES_OF_THE_API
from llm_inference.health import Health, Phase
from llm_inference.keys import KeyFile
from llm_inference.protocol import HttpProtocol
from llm_inference.serving import Serving
from llm_inference.settings import Settings

ECHO = "/v1/echo"
LIMIT = 4096


class Engine(GenerationEngine):
    """Says that it is well, or how long it has been at a step."""

    capacity = Capacity(max_length=32, max_concurrency=2, max_queue=2, vocabulary=50)
    alive = True
    stalled_seconds = 0.0

    def load(self):
        return Load(running=0, waiting=0, cache_usage=0.0)

    def compile(self, grammar): ...

    def submit(self, request): ...

    async def close(self): ...


async def echo(request):
    body = await request.body()
    record = request.state.record
    return JSONResponse({"bytes": len(body), "client": record.client})


async def slow(_request):
    await asyncio.sleep(60)


async def broken(_request):
    raise RuntimeError("secret detail")


class Tokens:
    """A stream of two sequences' events."""

    def __init__(self):
        self.events = [
            TokenEvent(index=0, text="a", tokens=1, waited=0.5),
            TokenEvent(index=1, text="b", tokens=3, finish_reason=FinishReason.STOP),
            TokenEvent(index=0, text="", tokens=4, finish_reason=FinishReason.LENGTH),
        ]

    async def __aiter__(self):
        for event in self.events:
            yield event

    async def next_events(self):
        events, self.events = self.events, []
        return events

    def cancel(self): ...


async def generate(request):
    asked = GenerationRequest(prompt=(1, 2, 3), max_tokens=9)
    stream = request.state.record.follow([asked], Tokens())
    if request.query_params:
        await stream.next_events()
    else:
        assert [event.text async for event in stream] == ["a", "b", ""]
    return JSONResponse({})


async def endless(_request):
    async def parts():
        while True:
            yield b"part "
            await asyncio.sleep(0.01)

    return StreamingResponse(parts())


ROUTES = {
    ECHO: echo,
    "/v1/slow": slow,
    "/v1/broken": broken,
    "/v1/generate": generate,
    "/v1/endless": endless,
    "/tokenize": echo,
    "/detokenize": echo,
    "/info": echo,
}


async def open_route(_request):
    return JSONResponse({"open": True})


@asynccontextmanager
async def server(keys=None, **settings):
    """A real uvicorn on a port of its own, with the gate in it."""
    settings = {"max_body_bytes": LIMIT, "receive_timeout_seconds": 0.3, **settings}
    serving = Serving(Settings(served_name="m", **settings), Health(), load=lambda _: Engine())
    for phase in (Phase.LOADING, Phase.WARMING):
        serving.health.enter(phase)
    serving._serve(Engine())
    routes = [Route(path, of, methods=["GET", "POST"]) for path, of in ROUTES.items()]
    app = Starlette(routes=[*routes, Route("/livez", open_route)])
    app.add_middleware(
        Gate, serving=serving, keys=keys, routes=frozenset(ROUTES), trace=lambda _: "the-trace"
    )
    protocol = type("Protocol", (HttpProtocol,), {})
    protocol.head_seconds = 0.3
    config = uvicorn.Config(
        app, http=protocol, ws="none", port=0, log_config=None, access_log=False, lifespan="off"
    )
    running = uvicorn.Server(config)
    task = asyncio.create_task(running.serve())
    await until(lambda: running.started)
    port = running.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        yield SimpleNamespace(client=client, serving=serving, port=port)
    running.should_exit = True
    await task


async def until(holds):
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 - nothing tells when
            await asyncio.sleep(0.005)


async def raw(port, *parts, pause=0.0):
    """Status and body of the answer to bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        async with asyncio.timeout(5):
            answer = await reader.read()
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]


def is_openais(error, status):
    """Whether an answer is an error in OpenAI's shape."""
    return set(error) == {"message", "type", "param", "code"} and status >= 400


async def test_a_body_within_the_bound_comes_through_whole():
    async with server() as it:
        for size in (0, 1, LIMIT):
            answer = await it.client.post(ECHO, content=b"x" * size)
            assert answer.json()["bytes"] == size
        assert (await it.client.get(ECHO)).json()["bytes"] == 0


async def test_a_body_that_says_it_is_too_large_is_not_read(monkeypatch):
    monkeypatch.setattr("llm_inference.gate._LINGER_SECONDS", 0.1)
    async with server() as it:
        head = b"POST /v1/echo HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n"
        expects = b"expect: 100-continue\r\n\r\n"
        # Nothing of the body is ever sent, and it is not asked for.
        status, error = await raw(it.port, head % (LIMIT + 1) + expects)
    assert status == 413
    assert str(LIMIT) in error["message"]
    assert is_openais(error, status)


async def test_a_body_that_turns_out_too_large_is_413():
    async def chunks():
        for _ in range(100):
            yield b"x" * 1000

    async with server() as it:
        answer = await it.client.post(ECHO, content=chunks())
        assert answer.status_code == 413
        assert (await it.client.post(ECHO, content=b"x")).status_code == 200


async def test_a_client_that_still_sends_gets_to_read_that_it_is_too_much():
    async with server(max_body_bytes=1024) as it:
        answer = await it.client.post(ECHO, content=b"x" * 8_000_000)
        assert answer.status_code == 413
        assert is_openais(answer.json()["error"], 413)


async def test_a_body_that_does_not_come_is_408():
    async with server() as it:
        head = b"POST /v1/echo HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\n"
        status, error = await raw(it.port, head + b"12345")
    assert status == 408
    assert is_openais(error, status)


async def test_a_head_that_does_not_come_is_408():
    async with server() as it:
        status, error = await raw(it.port, b"POST /v1/echo HTTP/1.1\r\nhost: h\r\nx-")
    assert status == 408
    assert is_openais(error, status)


@pytest.mark.parametrize("parts", [1, 50])
@pytest.mark.parametrize("complete", [True, False])
async def test_a_head_that_is_too_large_is_431(parts, complete):
    value = b"x" * 100_000
    step = len(value) // parts
    pieces = [value[start : start + step] for start in range(0, len(value), step)]
    async with server() as it:
        status, error = await raw(
            it.port,
            b"GET /v1/echo HTTP/1.1\r\nhost: h\r\nx-large: ",
            *pieces,
            b"\r\n\r\n" if complete else b"",
        )
    assert status == 431
    assert is_openais(error, status)


async def test_what_is_no_http_is_400_in_openais_shape():
    async with server() as it:
        status, error = await raw(it.port, b"hello\r\n\r\n")
    assert status == 400
    assert is_openais(error, status)


NESTED = [
    (b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, 200),
    (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), 400),
    (b"[" * 3000, 400),
    (b'{"a":' * 500 + b"1" + b"}" * 500, 400),
    (b"[" + b"[]," * 500 + b"1]", 200),
    (b'["' + b"[" * 500 + b'"]', 200),
    (b'["\\"' + b"[" * 500 + b'"]', 200),
    (b'["\\\\",' + b"[" * 500, 400),
    (b'["' + b"[" * 500, 200),
]


async def test_how_deep_json_may_be():
    async with server() as it:
        statuses = [(await it.client.post(ECHO, content=body)).status_code for body, _ in NESTED]
    assert statuses == [status for _, status in NESTED]


async def test_a_route_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr("llm_inference.gate._GRACE_SECONDS", 0.05)
    async with server(request_timeout_seconds=0.1) as it:
        answer = await it.client.post("/v1/slow")
        assert answer.status_code == 504
        assert is_openais(answer.json()["error"], 504)


async def test_a_stream_is_not_ended_by_the_gate(monkeypatch):
    monkeypatch.setattr("llm_inference.gate._GRACE_SECONDS", 0.01)
    async with (
        server(request_timeout_seconds=0.05) as it,
        it.client.stream("GET", "/v1/endless") as answer,
    ):
        read = 0
        async for part in answer.aiter_bytes():
            read += len(part)
            if read > 50:  # of 5 bytes in 10 ms each: beyond the time limit
                break


async def test_a_bug_of_ours_is_500_and_keeps_its_secrets(caplog):
    async with server() as it:
        answer = await it.client.post("/v1/broken", headers={"x-request-id": "abc"})
    assert answer.status_code == 500
    assert is_openais(answer.json()["error"], 500)
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == "abc"
    assert "secret detail" in caplog.text


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text("sk-one\nsk-two\n")
    return KeyFile(path)


async def test_who_asks_is_told_by_the_key_alone(keys):
    async with server(keys) as it:
        clients = [
            (
                await it.client.post(
                    ECHO, headers={"Authorization": f"Bearer {key}"}, json={"user": "u"}
                )
            ).json()["client"]
            for key in ("sk-one", "sk-two", "sk-one")
        ]
    assert clients[0] == clients[2] == hashlib.sha256(b"sk-one").hexdigest()[:12]
    assert clients[0] != clients[1]


async def test_without_keys_all_who_ask_are_one():
    async with server() as it:
        answer = await it.client.post(ECHO, headers={"Authorization": "Bearer sk-one"})
        assert answer.json()["client"] == ""


async def test_every_route_of_the_api_asks_for_a_key(keys):
    async with server(keys) as it:
        for path in [*ROUTES, "/v1/none"]:
            assert (await it.client.post(path)).status_code == 401
        assert (await it.client.get("/livez")).status_code == 200


async def test_a_body_is_not_read_from_a_stranger(keys):
    async with server(keys) as it:
        head = b"POST /v1/echo HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\nconnection: close\r\n"
        status, error = await raw(it.port, head + b"expect: 100-continue\r\n\r\n")
    assert (status, error["code"]) == (401, "invalid_api_key")


async def test_a_request_id_is_kept_if_it_is_one():
    good, bad = ["req-1.a:b/c", "a" * 128], ["a" * 129, "a b", ""]
    async with server() as it:
        given = [*good, *bad, *bad]
        answers = [await it.client.get(ECHO, headers={"x-request-id": name}) for name in given]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert ids[:2] == good
    assert len(set(ids[2:])) == 6
    assert not set(ids[2:]) & set(bad)


@pytest.fixture
def access(caplog):
    """Fields of the access log's lines, as JSON has them."""
    caplog.set_level(logging.INFO, "llm_inference.access")
    form = logs.JsonFormatter()
    return lambda: [json.loads(form.format(record)) for record in caplog.records]


@pytest.mark.parametrize("query", ["", "?all=at-once"])
async def test_the_line_of_a_request(keys, access, query):
    async with server(keys) as it:
        headers = {"Authorization": "Bearer sk-one", "x-request-id": "r1"}
        prompt = {"prompt": "a private matter"}
        await it.client.post(f"/v1/generate{query}", headers=headers, json=prompt)
        metrics = it.serving.metrics.render().decode()
    (line,) = access()
    assert (
        line.items()
        >= {
            "level": "info",
            "logger": "llm_inference.access",
            "request_id": "r1",
            "trace_id": "the-trace",
            "client": hashlib.sha256(b"sk-one").hexdigest()[:12],
            "method": "POST",
            "route": "/v1/generate",
            "status": 200,
            "model": "m",
            "prompt_tokens": 3,
            "completion_tokens": 7,
            "queue_seconds": 0.5,
        }.items()
    )
    assert line["finish_reasons"] == ["stop", "length"]
    assert 0 <= line["time_to_first_token"] <= line["seconds"] < 5
    assert "private" not in json.dumps(line)
    assert "sk-one" not in json.dumps(line)
    labels = 'model_name="m",route="/v1/generate",status="200"'
    assert f"llm_http_requests_total{{{labels}}} 1.0" in metrics


async def test_a_client_that_left_is_499(access):
    async with server() as it:
        async with it.client.stream("GET", "/v1/endless") as answer:
            await anext(answer.aiter_bytes())
        await until(access)
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(b"POST /v1/echo HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\n12")
        await asyncio.sleep(0.05)
        writer.close()
        await until(lambda: len(access()) == 2)
        del reader
    assert [line["status"] for line in access()] == [499, 499]


def test_the_routes_of_the_application_are_all_known():
    serving = Serving(Settings(), Health(), load=lambda _: Engine())
    paths = create_app(serving).openapi()["paths"]
    guarded = {path for path in paths if path.startswith(API) and "{" not in path}
    assert guarded == ROUTES_OF_THE_API


async def test_an_unknown_path_becomes_no_label(access):
    async with server() as it:
        await it.client.get("/v1/anything-a-scanner-tries")
        assert 'route="other",status="404"' in it.serving.metrics.render().decode()
    assert access()[0]["route"] == "other"
