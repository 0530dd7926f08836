"""The gate in front of the API: who gets in, with what, and what is written down about it.

Knows ASGI, keys, bounds and the server's life. Does not know the API's parameters, nor the model.
"""

import asyncio
import hashlib
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_inference import body, logs
from llm_inference.errors import ApiError
from llm_inference.health import Phase
from llm_inference.keys import KeyFile
from llm_inference.record import Record
from llm_inference.serving import Serving

logger = logging.getLogger(__name__)
access_log = logging.getLogger("llm_inference.access")

# What is asked of the model or tells about it: guarded by keys, counted, logged. All else, probes,
# metrics and the API's description, is open and always answered.
API = ("/v1/", "/tokenize", "/detokenize", "/info")
# Paths that become labels of metrics and names of spans; a scanner's guesses do not.
ROUTES = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/models",
        "/tokenize",
        "/detokenize",
        "/info",
    }
)

_CLIENT_CLOSED = 499  # nginx's status for a client that has gone
# Routes end their own requests in time, with what they know; the gate ends those that did not.
_GRACE_SECONDS = 5.0
_LINGER_SECONDS = 2.0
_FAILED = ApiError(500, "The server failed on this request.")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class Gate:
    """Lets API requests in only while they would be served, and keeps a `Record` of each.

    Where there are keys, only those who have one. The record is the state's `record` of the scope
    that the application gets.

    Args:
        app: the application behind it.
        serving: the server's life.
        keys: who may ask; None for everyone.
        trace: called with the record of each request that is over; returns the trace's id.
        routes: paths that become labels, all others being "other".
    """

    def __init__(
        self,
        app: ASGIApp,
        serving: Serving,
        keys: KeyFile | None,
        trace: Callable[[Record], str | None],
        routes: frozenset[str] = ROUTES,
    ) -> None:
        self._app = app
        self._serving = serving
        self._keys = keys
        self._routes = routes
        self._trace = trace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"].startswith(API):
            await self._serve(scope, receive, _Answer(send, self._serving, self._record(scope)))
        else:
            await self._app(scope, receive, _Answer(send, self._serving))

    async def _serve(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        record = answer.record
        logs.request_id.set(record.request_id)
        scope.setdefault("state", {})["record"] = record
        try:
            with self._serving.request():
                await self._answer(scope, receive, answer)
        except Exception:
            logger.exception("a request failed")
            if not answer.begun:
                await _FAILED.response()(scope, receive, answer)
        finally:
            record.ended = time.monotonic()
            record.status = answer.status if answer.complete else _CLIENT_CLOSED
            self._tell(record)

    async def _answer(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        settings = self._serving.settings
        try:
            self._check_key(scope, answer.record)
            self._check_life()
            receive = await body.read(
                scope,
                receive,
                limit=settings.max_body_bytes,
                seconds=settings.receive_timeout_seconds,
            )
        except ApiError as error:
            await _refuse(error, scope, receive, answer)
        except body.Disconnected:
            return
        else:
            await self._pass_on(scope, receive, answer)

    async def _pass_on(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        seconds = self._serving.settings.request_timeout_seconds
        try:
            async with asyncio.timeout(seconds + _GRACE_SECONDS) as limit:
                with answer.begin_within(limit):
                    await self._app(scope, receive, answer)
        except TimeoutError:
            if answer.begun:
                raise
            error = ApiError(504, f"The request took longer than {seconds:g} s.")
            await error.response()(scope, receive, answer)

    def _record(self, scope: Scope) -> Record:
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        path = scope["path"]
        return Record(
            request_id=given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex,
            method=scope["method"],
            route=path if path in self._routes else "other",
            traceparent=headers.get("traceparent", ""),
            tracestate=headers.get("tracestate", ""),
        )

    def _check_key(self, scope: Scope, record: Record) -> None:
        """Find out who asks.

        Raises:
            ApiError: 401, nobody who may.
        """
        if self._keys is None:
            return
        given = Headers(scope=scope).get("authorization", "")
        scheme, _, text = given.partition(" ")
        # Header values are latin-1 to ASGI; keys are the bytes of the file.
        key = text.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
        if key and self._keys.accepts(key):
            record.client = hashlib.sha256(key).hexdigest()[:12]
            return
        raise ApiError(
            401,
            "The API key is not one of this server's."
            if key
            else "The request carries no API key: send it as Authorization: Bearer <key>.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _check_life(self) -> None:
        """Let requests in while they would be served.

        Raises:
            ApiError: 503.
        """
        if self._serving.serves:
            return
        phase = self._serving.health.phase
        soon = {"Retry-After": "1"}
        if phase is Phase.DRAINING:
            raise ApiError(503, "The server is shutting down.", headers=soon)
        if self._serving.alive and phase is not Phase.SERVING:
            raise ApiError(503, "The model is still loading.", headers=soon)
        raise ApiError(503, "The engine has failed.", headers={"Connection": "close"})

    def _tell(self, record: Record) -> None:
        """Write down a request that is over."""
        self._serving.metrics.answered(record.route, record.status)
        first = record.time_to_first_token
        access_log.info(
            "%s %s %d",
            record.method,
            record.route,
            record.status,
            extra=logs.fields(
                request_id=record.request_id,
                trace_id=self._trace(record),
                client=record.client or None,
                method=record.method,
                route=record.route,
                status=record.status,
                model=self._serving.model_name,
                prompt_tokens=record.prompt_tokens,
                completion_tokens=record.completion_tokens,
                finish_reasons=record.reasons or None,
                queue_seconds=None if record.waited is None else round(record.waited, 4),
                time_to_first_token=None if first is None else round(first, 4),
                seconds=round(record.seconds, 4),
            ),
        )


class _Answer:
    """What an application sends its answer with; sees what is sent.

    Clients are asked to close their connection once the server is leaving. A plain function, not
    another coroutine around each token.
    """

    def __init__(self, send: Send, serving: Serving, record: Record | None = None) -> None:
        self._send = send
        self._serving = serving
        self._record = record
        self._limit: asyncio.Timeout | None = None
        self.status = 0
        self.complete = False

    def __call__(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            self._begin(message)
        elif message["type"] == "http.response.body":
            self.complete = not message.get("more_body")
        return self._send(message)

    @contextmanager
    def begin_within(self, limit: asyncio.Timeout) -> Iterator[None]:
        """Lift `limit` as soon as the answer begins: a stream that has begun ends by itself."""
        self._limit = limit
        try:
            yield
        finally:
            self._limit = None

    @property
    def begun(self) -> bool:
        """Whether the status has been sent."""
        return self.status != 0

    @property
    def record(self) -> Record:
        """The record of the request, which a request to the API has."""
        if self._record is None:
            raise RuntimeError("only requests to the API have a record")
        return self._record

    def _begin(self, message: Message) -> None:
        self.status = message["status"]
        headers = MutableHeaders(scope=message)
        if self._record is not None:
            headers["x-request-id"] = self._record.request_id
        if self._serving.leaving:
            headers["connection"] = "close"
        if self._limit is not None:
            self._limit.reschedule(None)


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request whose body has not been read, or not all of it."""
    if error.status not in (408, 413):
        await error.response()(scope, receive, send)
        return
    response = error.response()
    headers = [*response.raw_headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    if error.status == 413:  # noqa: PLR2004
        await body.discard(receive, _LINGER_SECONDS)
    await send({"type": "http.response.body", "body": b""})
