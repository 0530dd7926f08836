"""What comes over a connection, in whatever pieces it comes."""

import asyncio
import json
from contextlib import suppress

import pytest

from bench.serving.stream import DONE, Answer, Events, Target, ask

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


def event(payload):
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return b"data: " + data + b"\n\n"


def piece(text):
    return event({"choices": [{"index": 0, "delta": {"content": text}}]})


def usage(prompt, completion):
    counts = {"prompt_tokens": prompt, "completion_tokens": completion}
    return event({"choices": [], "usage": counts})


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_whole_however_they_are_cut(size):
    body = b': idle\n\ndata: {"a":1}\n\nevent: x\r\ndata:two\r\ndata: lines\r\n\r\ndata: [DONE]\n\n'
    events, seen = Events(), []
    for at in range(0, len(body), size):
        seen += events.feed(body[at : at + size])
    assert seen == [b'{"a":1}', b"two\nlines", DONE]


def test_an_event_that_is_not_over_is_not_given():
    events = Events()
    assert list(events.feed(b"data: half\n")) == []
    assert list(events.feed(b"\n")) == [b"half"]


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_a_chunked_body_loses_its_framing(size):
    wire = HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n"
    answer, body = Answer(), b""
    for at in range(0, len(wire), size):
        body += answer.feed(wire[at : at + size])
    assert (answer.status, body, answer.complete) == (200, b"hello world", True)


def test_a_chunked_body_that_stops_is_not_complete():
    answer = Answer()
    assert answer.feed(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n") == b"hello"
    assert not answer.complete


def test_a_body_with_a_length_is_complete_with_its_last_byte():
    answer = Answer()
    assert answer.feed(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbu") == b"bu"
    assert not answer.complete
    assert answer.feed(b"sy") == b"sy"
    assert (answer.status, answer.complete, answer.until_closed) == (503, True, False)


def test_a_body_without_a_length_ends_with_the_connection():
    answer = Answer()
    assert answer.feed(b"HTTP/1.0 200 OK\r\n\r\nanything") == b"anything"
    assert (answer.complete, answer.until_closed) == (False, True)


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.7:8080", "http://example.com:80", "https://127.0.0.1:1", "http://127.0.0.1"],
)
def test_load_goes_to_loopback_alone(url):
    with pytest.raises(ValueError, match="load is sent to"):
        Target(url, "m")


@pytest.mark.parametrize("url", ["http://127.0.0.1:80", "http://[::1]:80", "http://localhost:80"])
def test_loopback_has_several_names(url):
    assert Target(url, "m").address[1] == 80


def test_a_request_asks_for_a_greedy_stream_with_its_usage():
    target = Target("http://127.0.0.1:1", "m", extra={"ignore_eos": True}, key="secret")
    head, _, body = target.request("why", 5).partition(b"\r\n\r\n")
    assert json.loads(body) == {
        "model": "m",
        "messages": [{"role": "user", "content": "why"}],
        "max_tokens": 5,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:1\r\n")
    assert b"Content-Length: %d" % len(body) in head
    assert b"Authorization: Bearer secret" in head


def test_a_completion_asks_with_a_prompt():
    body = Target("http://127.0.0.1:1", "m", "/v1/completions").request("why", 5)
    assert json.loads(body.partition(b"\r\n\r\n")[2])["prompt"] == "why"


async def asked(*parts, within=10, stays=False):
    """What a request sees of a server that sends these bytes and closes, or waits for that."""

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
        with suppress(ConnectionError):
            await (reader.read() if stays else asyncio.sleep(0))
        writer.close()
        gone.set()

    gone = asyncio.Event()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        sample = await ask(Target(f"http://127.0.0.1:{port}", "m"), "why", 5, within=within)
        await gone.wait()
    return sample


UNTIL_CLOSED = HEAD + b"\r\n"


async def test_a_stream_is_its_pieces_and_the_tokens_that_the_server_states():
    opening = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    sample = await asked(
        UNTIL_CLOSED + opening, piece("a"), piece("b c"), usage(7, 3), event(DONE), stays=True
    )
    assert (sample.failure, len(sample.pieces)) == (None, 2)
    assert (sample.prompt_tokens, sample.tokens) == (7, 3)
    assert sample.due <= sample.pieces[0] <= sample.pieces[1] <= sample.ended


async def test_pieces_are_counted_where_no_tokens_are_stated_and_the_end_is_a_close():
    sample = await asked(UNTIL_CLOSED, piece("a"), piece("b"))
    assert (sample.failure, sample.tokens) == (None, 2)


async def test_a_refusal_is_a_failure_with_its_reason():
    sample = await asked(b"HTTP/1.1 429 Too Many\r\nContent-Length: 4\r\n\r\nfull")
    assert sample.failure == "status 429: full"


async def test_an_error_in_the_stream_is_a_failure():
    sample = await asked(UNTIL_CLOSED, piece("a"), event({"error": {"message": "engine failed"}}))
    assert sample.failure == "error in the stream: engine failed"


async def test_a_stream_that_breaks_off_is_a_failure():
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    data = piece("a")
    sample = await asked(head + b"%x\r\n%s\r\n" % (len(data), data))
    assert sample.failure == "broken off: closed by the server"


async def test_an_answer_without_text_is_a_failure():
    assert (await asked(UNTIL_CLOSED, event(DONE))).failure == "no text"


async def test_what_is_no_stream_is_a_failure():
    assert "not understood" in (await asked(UNTIL_CLOSED, event(b"{"))).failure
    assert "not understood" in (await asked(b"SSH-2.0\r\n\r\n")).failure


async def test_a_server_that_is_silent_is_a_failure():
    sample = await asked(UNTIL_CLOSED, piece("a"), within=0.2, stays=True)
    assert sample.failure == "timed out after 0.2 s"


async def test_no_server_is_a_failure():
    sample = await ask(Target("http://127.0.0.1:1", "m"), "why", 5)
    assert "not connected" in sample.failure
