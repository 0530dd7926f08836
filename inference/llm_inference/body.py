"""The body of a request: read whole before the application sees it, within bounds.

Knows ASGI messages and JSON's brackets; does not know what the JSON means.
"""

import asyncio
import re
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from llm_inference.errors import ApiError

# Schemas of tools are the deepest that is asked for in earnest, with about 20.
MAX_DEPTH = 64
# From this size on the depth is looked into in a thread.
_LARGE = 1 << 18
# A string, closed or not. Possessive: it is never read twice.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))


class Disconnected(Exception):  # noqa: N818 - not an error of anybody's
    """The client went away before its request had come."""


async def read(scope: Scope, receive: Receive, *, limit: int, seconds: float) -> Receive:
    """Read the body; what is returned gives it to the application, then what comes after it.

    Args:
        scope: of the connection.
        receive: of the connection.
        limit: most bytes; a body that says it is longer is not read at all.
        seconds: how long it may take.

    Raises:
        ApiError: 413, 408 or 400: too long, too slow, nested too deeply.
        Disconnected: there is nobody to answer.
    """
    body = await _read(scope, receive, limit, seconds)
    deep = await asyncio.to_thread(_too_deep, body) if len(body) > _LARGE else _too_deep(body)
    if deep:
        raise ApiError(400, f"The JSON is nested deeper than {MAX_DEPTH} levels.")
    first: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def replay() -> Message:
        nonlocal first
        message, first = first, None
        return message or await receive()

    return replay


async def discard(receive: Receive, seconds: float) -> None:
    """Read on what nobody wants, so that a client that still sends comes to read its answer."""
    try:
        async with asyncio.timeout(seconds):
            while (await receive()).get("more_body"):
                pass
    except TimeoutError:
        return


async def _read(scope: Scope, receive: Receive, limit: int, seconds: float) -> bytes:
    too_large = ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is larger than {limit} bytes."
    )
    told = Headers(scope=scope).get("content-length", "")
    if told.isdecimal() and int(told) > limit:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Disconnected
                chunk: bytes = message.get("body", b"")
                size += len(chunk)
                if size > limit:
                    raise too_large
                chunks.append(chunk)
                if not message.get("more_body"):
                    return b"".join(chunks)
    except TimeoutError:
        raise ApiError(
            HTTPStatus.REQUEST_TIMEOUT, f"The body took longer than {seconds:g} s to come."
        ) from None


def _too_deep(body: bytes) -> bool:
    """Whether brackets outside strings are nested deeper than `MAX_DEPTH`."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False
    # In C, level by level from the innermost on: a loop over brackets would take seconds.
    left = _STRING.sub(b"", body).translate(_BRACKETS, _OTHERS)
    for _ in range(MAX_DEPTH):
        less = left.replace(b"[]", b"")
        if len(less) == len(left):
            break
        left = less
    # What is still closed is deeper; what is never closed may be as deep as there are brackets.
    return b"[]" in left or left.count(b"[") > MAX_DEPTH
