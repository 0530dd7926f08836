"""One server's life: loading the model in a thread, counting requests, draining on SIGTERM.

Knows settings, health, metrics and the engine's interface. Knows no HTTP, and imports the loader,
and what it needs, only in the loading thread.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llm_inference.engine.directory import ModelDirectory, ModelLoadError, inspect, name_of
from llm_inference.engine.interface import Engine, GenerationEngine, Observer
from llm_inference.health import Health, Phase
from llm_inference.metrics import Metrics
from llm_inference.settings import Settings

logger = logging.getLogger(__name__)

# A server that drains is done when nobody has asked for anything for so long, in seconds. Who
# sends on a connection that was open before has learned by then that it is to be closed.
_QUIET_SECONDS = 2.0
_LOOK_SECONDS = 0.05
# An engine that hangs in a step does not close.
_CLOSE_SECONDS = 5.0


class Serving:
    """What the routes of one server share.

    Args:
        settings: checked settings.
        health: phase machine, already started.
        load: loads the engine, in a thread; replaced in tests.
    """

    def __init__(
        self,
        settings: Settings,
        health: Health,
        load: "Callable[[Serving], Engine] | None" = None,
    ) -> None:
        self.settings = settings
        self.health = health
        self.engine: Engine | None = None
        self.model_root = settings.model_id or name_of(settings.model_dir)
        self.model_name = settings.served_name or self.model_root
        self.created = int(time.time())
        self.metrics = Metrics(self.model_name)
        self.metrics.startup_seconds = health.startup_seconds
        health.name_quantization(settings.quantization)
        self.finished = asyncio.Event()
        self._load = load or load_engine
        self.connections: Callable[[], int] = lambda: 0
        self.drained_by: float | None = None
        self._active = self._admitted = 0
        self._hung = False
        self._idle = asyncio.Event()
        self._idle.set()

    def start_loading(self) -> None:
        """Load the model in a thread of its own; sets `finished` if that fails."""
        loop = asyncio.get_running_loop()

        def run() -> None:
            try:
                engine = self._load(self)
            except ModelLoadError as error:
                self.health.fail(str(error))
                loop.call_soon_threadsafe(self.finished.set)
            except Exception as error:
                logger.exception("loading failed")
                self.health.fail(f"loading the model failed: {type(error).__name__}: {error}")
                loop.call_soon_threadsafe(self.finished.set)
            else:
                loop.call_soon_threadsafe(self._serve, engine)

        threading.Thread(target=run, name="loader", daemon=True).start()

    def _serve(self, engine: Engine) -> None:
        self.engine = engine
        self.metrics.load = engine.load
        if self.health.device is not None and isinstance(engine, GenerationEngine):
            self.metrics.describe_cache(engine.capacity, self.health.device.dtype)
        if self.health.enter(Phase.SERVING):
            phases = self.health.startup_seconds()
            logger.info(
                "serving %s after %.1f s (%s)",
                self.model_name,
                sum(phases.values()),
                ", ".join(f"{name} {seconds:.1f}" for name, seconds in phases.items()),
            )

    @property
    def alive(self) -> bool:
        """False once only a restart helps."""
        if self.health.phase is Phase.FAILED:
            return False
        return self.engine is None or (self.engine.alive and not self._hangs(self.engine))

    def _hangs(self, engine: Engine) -> bool:
        """Whether the engine is at one step for too long: a kernel or a card that is stuck."""
        seconds = engine.stalled_seconds
        hangs = seconds > self.settings.step_timeout_seconds
        if hangs and not self._hung:
            logger.error("a step of the model has taken %.0f s and is taken to hang", seconds)
        self._hung = hangs
        return hangs

    @property
    def ready(self) -> bool:
        """Whether a request sent now would be served."""
        return self.health.ready and self.alive

    @property
    def serves(self) -> bool:
        """Whether a request that has come is served: also while draining, until its end."""
        draining = self.health.phase is Phase.DRAINING and self.engine is not None
        return self.alive and (self.health.ready or draining)

    @property
    def leaving(self) -> bool:
        """Whether clients should go elsewhere with their next request."""
        return self.health.phase in (Phase.DRAINING, Phase.FAILED)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request as active, so that draining waits for it."""
        self._active += 1
        self._admitted += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def drain(self) -> None:
        """Serve until nobody asks any more or the time is over, then set `finished`.

        From now on every answer asks its client to close the connection. A request that comes
        nevertheless was sent before that was known, and is served.
        """
        self.health.enter(Phase.DRAINING)
        seconds = self.settings.drain_seconds
        logger.info("draining: %d requests have %g s to finish", self._active, seconds)
        self.drained_by = time.monotonic() + seconds
        try:
            async with asyncio.timeout(seconds):
                await self._quiet()
        except TimeoutError:
            logger.warning("%d requests did not finish in time and are ended", self._active)
            await self.close()
        self.finished.set()

    async def close(self) -> None:
        """End what the engine runs and stop it, if it can be stopped."""
        if self.engine is None:
            return
        try:
            await asyncio.wait_for(self.engine.close(), _CLOSE_SECONDS)
        except TimeoutError:
            logger.error("the engine does not stop: a step of the model hangs")  # noqa: TRY400

    async def _quiet(self) -> None:
        """Return when no request runs and no connection is open, or none has brought one lately."""
        while self.engine is not None:
            await self._idle.wait()
            admitted, since = self._admitted, time.monotonic()
            while admitted == self._admitted:
                if not self.connections() or time.monotonic() - since >= _QUIET_SECONDS:
                    return
                await asyncio.sleep(_LOOK_SECONDS)


def load_engine(serving: Serving) -> Engine:
    """Import the engine, load the model and tell health and metrics how it goes.

    Raises:
        ModelLoadError: the model cannot be served.
    """
    settings, health = serving.settings, serving.health
    # What is wrong with the directory itself is told before anything is imported for it.
    directory = _find_model(serving)
    health.name_model(directory.model_id, directory.revision)
    from llm_inference.engine import loader  # noqa: PLC0415 - imports what runs models

    observer: Observer = serving.metrics
    loaded = loader.load_model(
        directory,
        loader.LoadOptions(
            dtype=settings.dtype,
            quantization=settings.quantization,
            device=settings.device,
            threads=settings.threads,
            max_length=settings.max_length,
            max_concurrency=settings.max_concurrency,
            max_queue=settings.max_queue,
            max_queue_tokens=settings.max_queue_tokens,
        ),
        on_phase=lambda phase: health.enter(Phase(phase)),
        observer=observer,
    )
    health.describe_device(loaded.device)
    serving.metrics.describe_device(loaded.device, settings.quantization)
    return loaded.engine


def _find_model(serving: Serving) -> ModelDirectory:
    settings, health = serving.settings, serving.health
    if settings.model_source == "directory":
        return inspect(
            settings.model_dir,
            model_id=settings.model_id,
            revision=settings.model_revision,
            task=settings.task,
        )
    from llm_inference import download  # noqa: PLC0415 - imports the hub's client

    health.enter(Phase.DOWNLOADING)
    path, commit = download.fetch(settings, health.downloaded)
    health.enter(Phase.IMPORTING)
    return inspect(
        path,
        model_id=settings.model_id,
        revision=commit,
        task=settings.task,
        has_manifest=False,
    )
