"""One streamed answer over HTTP/1.1: what came of it, and when.

Knows requests, chunked bodies and server-sent events, and which chunks of OpenAI's hold text.
Written on asyncio's protocols, without a client library: the machine that is measured also runs
this, and a few microseconds a token are what it may cost. Does not know how many requests run at
once, nor what the times say about the server.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

DONE = b"[DONE]"
_SUCCESS = range(200, 300)
_ERROR_SHOWN = 200


@dataclass(frozen=True)
class Target:
    """Where requests go.

    Attributes:
        url: Address of the server, such as `http://127.0.0.1:8080`; a loopback one.
        model: What requests call the model.
        path: The route that is asked; chat completions and completions are understood.
        extra: Fields of every body on top of what this module sets, `ignore_eos` for example.
        key: API key, if the server wants one.

    Raises:
        ValueError: The address is not one of this machine's loopback addresses.
    """

    url: str
    model: str
    path: str = "/v1/chat/completions"
    extra: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or ""
        try:
            loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            loopback = False
        if parts.scheme != "http" or not loopback or parts.port is None:
            raise ValueError(f"{self.url}: load is sent to http://127.0.0.1:PORT alone")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 0

    def request(self, prompt: str, tokens: int) -> bytes:
        """The bytes that ask for a greedy stream of at most so many tokens."""
        chat = self.path.endswith("chat/completions")
        asked = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        body = {
            "model": self.model,
            **asked,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.extra,
        }
        return self._head(content := json.dumps(body).encode()) + content

    def _head(self, content: bytes) -> bytes:
        host, port = self.address
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"Host: {f'[{host}]' if ':' in host else host}:{port}",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
        ]
        if self.key:
            lines.append(f"Authorization: Bearer {self.key}")
        return "\r\n".join([*lines, "", ""]).encode()


@dataclass
class Sample:
    """What was seen of one request; times are of `time.perf_counter`.

    Attributes:
        due: When it should have been sent: latencies count from here.
        pieces: When each chunk with text came.
        ended: When the answer was over.
        tokens: Tokens generated as the server states them, else the number of pieces.
        prompt_tokens: Tokens of the prompt as the server states them, else 0.
        failure: Why it is no whole answer; None for one that is.
    """

    due: float
    pieces: list[float] = field(default_factory=list)
    ended: float = 0.0
    tokens: int = 0
    prompt_tokens: int = 0
    failure: str | None = None


class Events:
    """The payloads in a body of server-sent events, as its bytes come.

    Lines end with LF or CRLF, which is what servers send, not with CR alone.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[bytes] = []

    def feed(self, body: bytes) -> Iterator[bytes]:
        """Yield the data of every event that is whole now; comments are none."""
        *lines, self._buffer = (self._buffer + body).split(b"\n")
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                yield b"\n".join(self._data)
                self._data = []


class Answer:
    """An HTTP/1.1 answer as its bytes come.

    Attributes:
        status: Status code, 0 until the head has come.
        complete: Whether the whole body has come. A body without a stated length never says so.
        until_closed: Whether only the end of the connection ends the body.
    """

    def __init__(self) -> None:
        self.status = 0
        self.complete = False
        self.until_closed = False
        self._buffer = bytearray()
        self._chunked = False
        self._left = 0  # bytes of the body, or of the current chunk, that have not come

    def feed(self, data: bytes) -> bytes:
        """The bytes of the body in `data`, without its framing.

        Raises:
            ValueError: This is no HTTP.
        """
        self._buffer += data
        if not self.status and not self._read_head():
            return b""
        if self._chunked:
            return self._read_chunks()
        body = bytes(self._buffer)
        self._buffer.clear()
        if not self.until_closed:
            self._left -= len(body)
            self.complete = self._left <= 0
        return body

    def _read_head(self) -> bool:
        head, border, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if not border:
            return False
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ")[1])
        fields = {
            name.strip().lower(): value.strip().lower()
            for name, _, value in (line.partition(":") for line in lines)
        }
        self._chunked = fields.get("transfer-encoding") == "chunked"
        self._left = int(fields.get("content-length", 0))
        self.until_closed = not self._chunked and "content-length" not in fields
        self.complete = not self._chunked and fields.get("content-length") == "0"
        self._buffer[:] = rest
        return True

    def _read_chunks(self) -> bytes:
        buffer, at, parts = self._buffer, 0, []
        while not self.complete:
            if not self._left:
                end = buffer.find(b"\r\n", at)
                if end < 0:
                    break
                size = int(bytes(buffer[at:end]).split(b";")[0], 16)
                self.complete = size == 0
                self._left = size + 2  # and the line break behind it
                at = end + 2
            elif len(buffer) - at < self._left:
                break  # a chunk is an event or a few: it is worth waiting for all of it
            else:
                parts.append(bytes(buffer[at : at + self._left - 2]))
                at += self._left
                self._left = 0
        del buffer[:at]
        return b"".join(parts)


class _Exchange(asyncio.Protocol):
    """Sends a request and notes in `sample` what comes back."""

    def __init__(self, request: bytes, sample: Sample) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._sample = sample
        self._answer = Answer()
        self._events = Events()
        self._text = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a TCP connection is one
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note what came and when."""
        now = time.perf_counter()
        try:
            body = self._answer.feed(data)
            if self._answer.status and self._answer.status not in _SUCCESS:
                self._text += body
            else:
                for payload in self._events.feed(body):
                    self._read(payload, now)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            self._end(f"not understood: {error!r}")
        else:
            if self._answer.complete:
                self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server has closed, which ends a body without a length and breaks off any other."""
        whole = exc is None and self._answer.until_closed
        self._end(None if whole else f"broken off: {exc or 'closed by the server'}")

    def close(self) -> None:
        """Leave, whatever has come."""
        if self._transport is not None:
            self._transport.abort()

    def _read(self, payload: bytes, now: float) -> None:
        if payload == DONE:
            self._end(None)
            return
        sample, chunk = self._sample, json.loads(payload)
        if error := chunk.get("error"):
            self._end(f"error in the stream: {_message(error)}")
            return
        if usage := chunk.get("usage"):
            sample.tokens = usage["completion_tokens"]
            sample.prompt_tokens = usage["prompt_tokens"]
        for choice in chunk.get("choices", ()):
            if choice.get("text") or (choice.get("delta") or {}).get("content"):
                sample.pieces.append(now)

    def _end(self, failure: str | None) -> None:
        if self.over.done():
            return
        sample = self._sample
        sample.ended = time.perf_counter()
        if self._answer.status not in _SUCCESS and self._answer.status:
            failure = f"status {self._answer.status}: {self._text[:_ERROR_SHOWN].decode('latin-1')}"
        elif failure is None and not sample.pieces:
            failure = "no text"
        sample.failure = failure
        sample.tokens = sample.tokens or len(sample.pieces)
        self.over.set_result(None)
        self.close()


def _message(error: object) -> str:
    return str(error.get("message", error) if isinstance(error, dict) else error)[:_ERROR_SHOWN]


async def ask(
    target: Target, prompt: str, tokens: int, *, due: float | None = None, within: float = 300
) -> Sample:
    """One request over a connection of its own; a failure is part of what is returned.

    Args:
        target: Whom to ask.
        prompt: What to ask.
        tokens: How many tokens to ask for at most.
        due: `time.perf_counter()` from which latencies count; now by default.
        within: Seconds after which it has failed.
    """
    sample = Sample(time.perf_counter() if due is None else due)
    exchange = _Exchange(target.request(prompt, tokens), sample)
    try:
        async with asyncio.timeout(within):
            await asyncio.get_running_loop().create_connection(lambda: exchange, *target.address)
            await exchange.over
    except TimeoutError:
        sample.failure = f"timed out after {within:g} s"
    except OSError as error:
        sample.failure = f"not connected: {error}"
    finally:
        exchange.close()
    if not sample.ended:
        sample.ended = time.perf_counter()
    return sample
