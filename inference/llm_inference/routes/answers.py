"""From the engine's events to the API's answers, whole or as a stream of server-sent events.

Knows the shapes of the answers and who waits for them: a client that goes away ends its request.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Protocol, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from llm_inference.engine.interface import (
    FinishReason,
    GenerationRequest,
    TokenEvent,
    TokenStream,
)
from llm_inference.errors import ApiError
from llm_inference.schemas import GenerationParameters
from llm_inference.serving import Serving

T = TypeVar("T")
_CLIENT_CLOSED = 499  # nginx's status for a client that has gone; nobody reads it


class Answer(Protocol):
    """One kind of answer: how it looks whole and in pieces."""

    def whole(self, texts: list[str], reasons: list[str], usage: dict[str, int]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """The chunk that opens choice `index`, if this kind has one."""

    def piece(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        """The chunk that adds `text` to choice `index` or ends it."""

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """The chunk that tells the usage."""


class _Head:
    """What every object of one answer starts with."""

    def __init__(self, prefix: str, model: str) -> None:
        self._id = f"{prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


class ChatAnswer(_Head):
    """Answers of /v1/chat/completions."""

    def __init__(self, model: str) -> None:
        super().__init__("chatcmpl", model)

    def whole(self, texts: list[str], reasons: list[str], usage: dict[str, int]) -> dict[str, Any]:
        """A chat.completion."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text},
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return {**self.head("chat.completion"), "choices": choices, "usage": usage}

    def opening(self, index: int) -> dict[str, Any]:
        """The chunk with the role."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None)

    def piece(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        """A chunk with text; the last one may have none."""
        return self._chunk(index, {"content": text} if text else {}, reason)

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """A chunk without choices."""
        return {**self.head("chat.completion.chunk"), "choices": [], "usage": usage}

    def _chunk(self, index: int, delta: dict[str, str], reason: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self.head("chat.completion.chunk"), "choices": [choice]}


class TextAnswer(_Head):
    """Answers of /v1/completions."""

    def __init__(self, model: str) -> None:
        super().__init__("cmpl", model)

    def whole(self, texts: list[str], reasons: list[str], usage: dict[str, int]) -> dict[str, Any]:
        """A text_completion."""
        choices = [
            self._choice(index, text, reason)
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return {**self.head("text_completion"), "choices": choices, "usage": usage}

    def opening(self, index: int) -> None:
        """Text completions open with their text."""

    def piece(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        """A chunk with text."""
        return {**self.head("text_completion"), "choices": [self._choice(index, text, reason)]}

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """A chunk without choices."""
        return {**self.head("text_completion"), "choices": [], "usage": usage}

    @staticmethod
    def _choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


async def answer(
    request: Request,
    serving: Serving,
    body: GenerationParameters,
    *,
    shape: Answer,
    stream: TokenStream,
    asked: GenerationRequest,
) -> Response:
    """The response to a request that the engine has admitted."""
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        events = _server_sent(serving, shape, stream, asked, with_usage=with_usage)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    try:
        return await _unless_disconnected(request, _collect(serving, shape, stream, asked))
    finally:
        stream.cancel()


async def _collect(
    serving: Serving, shape: Answer, stream: TokenStream, asked: GenerationRequest
) -> Response:
    texts, reasons, tokens = [""] * asked.n, [""] * asked.n, [0] * asked.n
    async for event in _in_time(serving, stream):
        texts[event.index] += event.text
        tokens[event.index] = event.tokens
        if event.finish_reason is not None:
            reasons[event.index] = event.finish_reason.value
    return JSONResponse(shape.whole(texts, reasons, _usage(asked, tokens)))


async def _server_sent(
    serving: Serving,
    shape: Answer,
    stream: TokenStream,
    asked: GenerationRequest,
    *,
    with_usage: bool,
) -> AsyncIterator[bytes]:
    tokens = [0] * asked.n
    # OpenAI: with include_usage, all chunks but the one with the usage say that they have none.
    extra: dict[str, Any] = {"usage": None} if with_usage else {}
    try:
        for index in range(asked.n):
            if (opening := shape.opening(index)) is not None:
                yield _data({**opening, **extra})
        async for event in _in_time(serving, stream):
            tokens[event.index] = event.tokens
            reason = event.finish_reason.value if event.finish_reason else None
            if event.text or reason:
                yield _data({**shape.piece(event.index, event.text, reason), **extra})
        if with_usage:
            yield _data(shape.usage(_usage(asked, tokens)))
        yield b"data: [DONE]\n\n"
    except ApiError as error:
        # The status has been sent: the error can only be told in the stream.
        yield _data(error.body())
    finally:
        stream.cancel()


async def _in_time(serving: Serving, stream: TokenStream) -> AsyncIterator[TokenEvent]:
    """The events of a stream.

    Raises:
        ApiError: the engine failed or was stopped, or the request took too long.
    """
    seconds = serving.settings.request_timeout_seconds
    deadline = asyncio.get_running_loop().time() + seconds
    events = aiter(stream)
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                event = await anext(events)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise ApiError(504, f"The request took longer than {seconds:g} s.") from None
        if event.finish_reason is FinishReason.ERROR:
            raise ApiError(500, event.error or "The engine failed on this request.")
        if event.finish_reason is FinishReason.ABORT:
            raise ApiError(503, "The server is shutting down.", headers={"Connection": "close"})
        yield event


async def _unless_disconnected(request: Request, work: Awaitable[Response]) -> Response:
    """The result of `work`, or nothing as soon as the client is gone."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else Response(status_code=_CLIENT_CLOSED)
    finally:
        for pending in (task, gone):
            pending.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _usage(asked: GenerationRequest, tokens: list[int]) -> dict[str, int]:
    prompt, generated = len(asked.prompt), sum(tokens)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
    }


def _data(chunk: dict[str, Any]) -> bytes:
    text = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
