"""From the engine's events to an answer, whole or as a stream of server-sent events.

Knows who waits for the answer: a client that goes away ends its request, as time does.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from llm_inference.engine.interface import FinishReason, TokenEvent, TokenStream
from llm_inference.errors import ApiError
from llm_inference.routes.engines import out_of_time
from llm_inference.routes.shapes import Choice, Shape, data
from llm_inference.serving import Serving

_CLIENT_CLOSED = 499  # nginx's status for a client that has gone; nobody reads it
_COMMENT = b": keep-alive\n\n"


class _Tokens:
    """Counts the tokens of an answer, and its choices until the last has ended."""

    def __init__(self, prompts: Sequence[Sequence[int]], choices: int) -> None:
        self._prompt = sum(map(len, prompts))
        self._choices_of_one = choices // len(prompts)
        self._reused = [0] * choices
        self._generated = [0] * choices
        self._open = choices

    def note(self, event: TokenEvent) -> None:
        """Count an event's tokens.

        Raises:
            ApiError: the engine failed or was stopped.
        """
        self._generated[event.index] = event.tokens
        self._reused[event.index] = event.reused
        if event.finish_reason is None:
            return
        self._open -= 1
        if event.finish_reason is FinishReason.ERROR:
            raise ApiError(500, event.error or "The engine failed on this request.")
        if event.finish_reason is FinishReason.ABORT:
            raise ApiError(503, "The server is shutting down.", headers={"Connection": "close"})

    @property
    def complete(self) -> bool:
        """Whether every choice has ended."""
        return self._open <= 0

    def usage(self) -> dict[str, Any]:
        """The usage as both APIs tell it."""
        generated = sum(self._generated)
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": generated,
            "total_tokens": self._prompt + generated,
            # Of a prompt's choices all but the first find it in the cache: that is no news.
            "prompt_tokens_details": {"cached_tokens": sum(self._reused[:: self._choices_of_one])},
        }


async def answer(
    request: Request,
    serving: Serving,
    *,
    shape: Shape,
    stream: TokenStream,
    prompts: Sequence[Sequence[int]],
    streamed: bool | None,
) -> Response:
    """The response to a request that the engine has admitted."""
    tokens = _Tokens(prompts, shape.choices)
    if streamed:
        return StreamedAnswer(serving, shape, stream, tokens)
    collecting = asyncio.ensure_future(_collect(shape, stream, tokens))
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait(
            {collecting, gone},
            timeout=serving.settings.request_timeout_seconds,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if collecting.done():
            return collecting.result()
        if gone.done():
            return Response(status_code=_CLIENT_CLOSED)
        raise out_of_time(serving)
    finally:
        collecting.cancel()
        gone.cancel()
        stream.cancel()


async def _collect(shape: Shape, stream: TokenStream, tokens: _Tokens) -> Response:
    choices = [Choice() for _ in range(shape.choices)]
    while not tokens.complete and (events := await stream.next_events()):
        for event in events:
            tokens.note(event)
            choices[event.index].add(event)
    return JSONResponse(shape.whole(choices, tokens.usage()))


async def _gone(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


class StreamedAnswer(Response):
    """An answer as a stream of server-sent events.

    Everything that has happened since the last write goes out with the next one. Comments fill
    silence, so that nobody between client and server takes the connection for dead.
    """

    def __init__(
        self, serving: Serving, shape: Shape, stream: TokenStream, tokens: _Tokens
    ) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(headers=headers, media_type="text/event-stream")
        del self.headers["content-length"]
        self._serving = serving
        self._shape = shape
        self._stream = stream
        self._tokens = tokens
        self._written_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the answer, until it ends, its time is over or its client has gone."""
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        writing: asyncio.Task[None] | None = None
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await send(start)
            writing = asyncio.create_task(self._write(send))
            await self._attend(writing, gone, send)
            if writing.done():
                writing.result()
            elif not gone.done():
                writing.cancel()
                body = data(out_of_time(self._serving).body()).encode()
                await send({"type": "http.response.body", "body": body, "more_body": False})
        finally:
            gone.cancel()
            if writing is not None:
                writing.cancel()
            self._stream.cancel()

    async def _attend(
        self, writing: "asyncio.Task[None]", gone: "asyncio.Future[None]", send: Send
    ) -> None:
        """Fill silence until the answer is written, its client gone or its time over."""
        now = asyncio.get_running_loop().time
        settings = self._serving.settings
        gap = settings.stream_comment_seconds
        deadline = now() + settings.request_timeout_seconds
        self._written_at = now()
        while (left := deadline - now()) > 0:
            silence = min(left, max(0.0, self._written_at + gap - now()))
            done, _ = await asyncio.wait(
                {writing, gone}, timeout=silence, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return
            if now() - self._written_at >= gap:
                self._written_at = now()
                await send({"type": "http.response.body", "body": _COMMENT, "more_body": True})

    async def _write(self, send: Send) -> None:
        now = asyncio.get_running_loop().time
        shape, stream, tokens = self._shape, self._stream, self._tokens
        text, events = shape.opening(), None
        try:
            while events is None or (events and not tokens.complete):
                if text:
                    self._written_at = now()
                    body = text.encode()
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                    text = ""
                events = await stream.next_events()
                for event in events:
                    tokens.note(event)
                    text += shape.chunks(event)
            text += shape.ending(tokens.usage())
        except ApiError as error:
            # The status has been sent: the error can only be told in the stream.
            text += data(error.body())
        await send({"type": "http.response.body", "body": text.encode(), "more_body": False})
