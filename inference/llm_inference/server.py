"""The process around the application: uvicorn, logging, and what SIGTERM means here.

Knows sockets and signals. Probes and late requests are answered while the server drains, so the
listening socket stays open until it has.
"""

import asyncio
import contextvars
import math
import resource
import socket
import time
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from llm_inference import logs
from llm_inference.app import create_app
from llm_inference.health import Health, process_started_at
from llm_inference.keys import KeyFile, KeysError
from llm_inference.protocol import HttpProtocol
from llm_inference.serving import Serving
from llm_inference.settings import Settings, SettingsError, traces_wanted

if TYPE_CHECKING:
    from llm_inference.tracing import Traces

# Seconds for connections that are still open once all requests have been answered.
_CLOSE_SECONDS = 2
# Seconds that a connection may be idle: longer than load balancers keep theirs, the slowest of
# which wait for 600. Whoever closes first must not be the one who may be sent a request.
_KEEP_ALIVE_SECONDS = 620
# Seconds for a collector to take the last traces.
_FLUSH_SECONDS = 3.0
_FILES = 65536


class Server(uvicorn.Server):
    """A uvicorn server that drains on the first signal and stops on the second."""

    def __init__(self, config: uvicorn.Config, serving: Serving) -> None:
        super().__init__(config)
        self._serving = serving
        serving.connections = lambda: len(self.server_state.connections)
        self._loop = asyncio.get_running_loop()
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn; afterwards it answers."""
        await super().startup(sockets)
        self._serving.health.answers()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Called by uvicorn on SIGTERM and SIGINT, between two instructions of the loop."""
        # In a context of its own: this one may be that of a request that has just been served.
        self._loop.call_soon_threadsafe(self._drain, context=contextvars.Context())

    async def stop_when_finished(self) -> None:
        """Let uvicorn exit once the server has drained or has failed."""
        await self._serving.finished.wait()
        if self._serving.drained_by is not None:
            # For a request that came in the very last moment.
            left = math.ceil(self._serving.drained_by - time.monotonic())
            self.config.timeout_graceful_shutdown = max(_CLOSE_SECONDS, left)
        self.should_exit = True

    def _drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._serving.drain())
        else:
            self.should_exit = self.force_exit = True


def run(settings: Settings) -> str | None:
    """Serve until SIGTERM; the reason if the model could not be served.

    Raises:
        SettingsError: nothing can listen on the address that is asked for, or no API key is in
            the file that should hold some.
    """
    logs.configure(settings.log_level, settings.log_format)
    _allow_connections()
    keys = _read_keys(settings)
    listener = _listen(settings)
    health = Health(
        model_id=settings.model_id,
        revision=settings.model_revision,
        started_at=process_started_at(),
    )
    uvicorn_loop = uvicorn.Config("", loop="auto", log_config=None).get_loop_factory()
    # Not closed: that would wait for threads, and one that hangs in the model never ends.
    runner = asyncio.Runner(loop_factory=uvicorn_loop)
    runner.run(_serve(settings, health, listener, keys))
    return health.error


def _allow_connections() -> None:
    """Have a file for each connection where the soft limit is the 1024 of old."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _read_keys(settings: Settings) -> KeyFile | None:
    if settings.api_keys_file is None:
        return None
    try:
        return KeyFile(settings.api_keys_file)
    except KeysError as error:
        raise SettingsError(f"LLM_API_KEYS_FILE: {error}") from None


def _listen(settings: Settings) -> socket.socket:
    """The listening socket.

    Raises:
        SettingsError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise SettingsError(
            f"LLM_HOST={settings.host} LLM_PORT={settings.port}: cannot listen there: "
            f"{error.strerror}"
        ) from error


async def _serve(
    settings: Settings, health: Health, listener: socket.socket, keys: KeyFile | None
) -> None:
    serving = Serving(settings, health)
    traces = _open_traces(serving)
    HttpProtocol.head_seconds = settings.receive_timeout_seconds
    config = uvicorn.Config(
        create_app(serving, keys, traces.report) if traces else create_app(serving, keys),
        http=HttpProtocol,
        ws="none",
        reset_contextvars=True,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
    )
    server = Server(config, serving)
    stopper = asyncio.create_task(server.stop_when_finished())
    await server.serve(sockets=[listener])
    stopper.cancel()
    if traces is not None:
        await _flush(traces)


def _open_traces(serving: Serving) -> "Traces | None":
    if not traces_wanted():
        return None
    from llm_inference.tracing import Traces  # noqa: PLC0415 - costs those who want it

    try:
        return Traces(serving.model_name)
    except Exception as error:
        raise SettingsError(f"traces cannot be sent: {error}") from error


async def _flush(traces: "Traces") -> None:
    """Send the last traces, if their collector takes them in time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_FLUSH_SECONDS):
            await asyncio.to_thread(traces.flush, _FLUSH_SECONDS)
