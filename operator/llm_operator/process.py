"""The life of the process: it follows, leads, and stops in an order that leaves nothing half done.

Knows what is started and stopped when, and with which exit code. Does not know what a leader does
with an LLMDeployment.
"""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Coroutine, Iterable, Sequence
from enum import IntEnum
from typing import Any

import kopf

from llm_operator import api, handlers
from llm_operator.cache import Cache, Key
from llm_operator.configs import Configs
from llm_operator.controller import Controller
from llm_operator.deafness import Deafness
from llm_operator.endpoints import Answer, Endpoints
from llm_operator.inspection import Inspection
from llm_operator.kube import ApiError, Kube
from llm_operator.lease import Identity, Lease, LeaseLostError
from llm_operator.optional import OptionalKinds
from llm_operator.resources import LLM_DEPLOYMENT, NODE, OPTIONAL, OWNED, POD, Resource
from llm_operator.resync import Resync
from llm_operator.settings import Settings
from llm_operator.telemetry import Body, Telemetry
from llm_operator.workqueue import WorkQueue

_GRACE_SECONDS = 1.0
"""What work under way is given when the process is told to stop."""
_KOPF_SECONDS = 3.0
"""What kopf is given to close its watches."""
_LISTEN_SECONDS = 5.0
"""Between two looks at whether the watches are deaf."""

logger = logging.getLogger(__name__)


class Exit(IntEnum):
    """Exit codes."""

    STOPPED = 0
    """It was told to."""
    FAILED = 1
    """A watch died or is deaf, or an error that nobody foresaw."""
    BAD_SETTING = 2
    """A setting is wrong; only a person can mend that."""
    LEASE_LOST = 3
    """It led and could not prove it in time. Started again it follows."""


class DeafError(Exception):
    """A watch tells nothing any more. The message is one sentence that says which."""


class Process:
    """One operator, from its start to its end. Runs once.

    Args:
        settings: What the person who installed it decided.

    Raises:
        SettingsError: it is to take part in an election and does not know where.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lease_namespace = "" if settings.standalone else settings.lease_namespace()
        self._cache = Cache()
        self._deafness = Deafness(settings.watch_namespaces)
        self._state = "starting"
        self._told = asyncio.Event()
        self._stop_kopf = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._lease: Lease | None = None
        self._watched: set[Resource] = set()
        self._queue: WorkQueue[Key] | None = None
        self._inspection: Inspection | None = None
        self._configs: Configs | None = None
        self._telemetry = Telemetry(
            llm_deployments=self._llm_deployments,
            queue=lambda: self._queue.load() if self._queue else (0, 0, 0),
            leads=lambda: self._refusal() is None,
        )

    async def run(self) -> Exit:
        """Live until a signal or a failure. Returns the exit code.

        Raises:
            OSError: the port is not to be had.
        """
        self._listen_to_signals()
        endpoints = Endpoints(
            port=self._settings.health_port,
            alive=self._alive,
            ready=self._ready,
            registry=self._telemetry.registry,
        )
        async with endpoints:
            # The Lease has a connection of its own: a renewal must not wait behind other requests.
            for_lease = await Kube.connect(self._telemetry.trace())
            kube = await Kube.connect(self._telemetry.trace(self._refusal))
            try:
                return await self._live(for_lease, kube)
            finally:
                await kube.close()
                await for_lease.close()

    async def _live(self, for_lease: Kube, kube: Kube) -> Exit:
        try:
            await self._follow_and_lead(for_lease, kube)
        except LeaseLostError as error:
            logger.error("stopping: this process leads no more: %s", error)  # noqa: TRY400
            return Exit.LEASE_LOST
        except DeafError as error:
            logger.error("stopping: %s", error)  # noqa: TRY400
            return Exit.FAILED
        except Exception:
            logger.exception("stopping after an unforeseen error")
            return Exit.FAILED
        finally:
            await self._stop()
        return Exit.STOPPED

    async def _follow_and_lead(self, for_lease: Kube, kube: Kube) -> None:
        """Return when told to stop."""
        ends = [self._start(self._told.wait(), "wait for a signal")]
        if self._lease_namespace:
            lease = self._lease = self._new_lease(for_lease)
            self._state = "follower"
            await _first(self._start(lease.acquire(), "acquire"), *ends)
            if self._told.is_set():
                return
            ends.append(self._start(lease.hold(), "hold"))
            self._start(lease.announce(), "announce")
        self._state = "leader"
        resync = self._assemble(kube)
        await _first(self._start(self._prepare(kube, resync), "prepare"), *ends)
        if self._told.is_set():
            return
        ends.append(self._start(resync.run(), "resync"))
        ends.append(self._start(self._listen(resync), "listen"))
        ends.append(self._start(self._follow_optional(kube), "optional"))
        await _first(self._start(self._watch(), "kopf"), *ends)
        if not self._told.is_set():
            raise RuntimeError("something ended that should go on for ever")

    def _new_lease(self, kube: Kube) -> Lease:
        settings = self._settings
        return Lease(
            kube=kube,
            namespace=self._lease_namespace,
            name=settings.lease_name,
            identity=Identity.new(pod=settings.pod_name, host=socket.gethostname()),
        )

    def _assemble(self, kube: Kube) -> Resync:
        self._inspection = Inspection(kube=kube, add=self._add)
        if self._settings.roll_on_config_change:
            namespaces = self._settings.watch_namespaces
            self._configs = Configs(kube=kube, namespaces=namespaces, add=self._add)
        controller = Controller(
            kube=kube,
            cache=self._cache,
            settings=self._settings,
            inspection=self._inspection,
            configs=self._configs,
            telemetry=self._telemetry,
        )
        self._queue = WorkQueue(controller.reconcile, observe=self._telemetry.reconciled)
        return Resync(
            kube=kube,
            cache=self._cache,
            add=self._queue.add,
            settings=self._settings,
            listed=self._listed,
        )

    def _listed(self, resource: Resource, namespace: str, bodies: Sequence[Body]) -> None:
        """A list owes nothing to the watch of a kind that may come and go."""
        if resource in self._watched:
            self._deafness.listed(resource, namespace, bodies)

    def _add(self, key: Key) -> None:
        """Have an LLMDeployment looked at."""
        if self._queue:
            self._queue.add(key)

    async def _prepare(self, kube: Kube, resync: Resync) -> None:
        """Learn of everything there is before the watches begin."""
        await kube.wait_until_served(api.API_VERSION)
        await resync.first()
        # What is known now stays: the collector need not go through it again and again.
        gc.collect()
        gc.freeze()
        watched = [LLM_DEPLOYMENT, POD, *(kind for kind in OWNED if kind not in OPTIONAL)]
        if self._settings.watch_nodes:
            watched.append(NODE)
        for resource in watched:
            handlers.watch(resource)
            self._watched.add(resource)

    async def _follow_optional(self, kube: Kube) -> None:
        namespaces = self._settings.watch_namespaces
        await OptionalKinds(
            kube=kube, cache=self._cache, add=self._add, namespaces=namespaces
        ).run()

    async def _watch(self) -> None:
        """Run kopf until it is told to stop.

        Raises:
            Exception: a watch died.
        """
        assert self._queue is not None  # noqa: S101 - assembled before
        ours = asyncio.all_tasks()
        # kopf would take the user's name, and a numeric user of a container has none.
        identity: Any = socket.gethostname()
        tasks = await kopf.spawn_tasks(
            settings=handlers.kopf_settings(),
            identity=identity,
            clusterwide=not self._settings.watch_namespaces,
            namespaces=self._settings.watch_namespaces,
            stop_flag=self._stop_kopf,
            memo=handlers.Operator(self._cache, self._queue, self._deafness),
        )
        self._listen_to_signals()  # kopf has just replaced them
        await kopf.run_tasks(tasks, ignored=ours)

    async def _listen(self, resync: Resync) -> None:
        """Look now and then at whether the watches still tell what the lists show.

        Raises:
            DeafError: one does not.
        """
        while True:
            await asyncio.sleep(_LISTEN_SECONDS)
            if not self._deafness.is_suspected():
                continue
            try:
                await resync.everything()
            except ApiError:
                self._deafness.unreachable()
            if deaf := self._deafness.found():
                raise DeafError(f"nothing more is told by the watch of {', '.join(deaf)}")

    async def _stop(self) -> None:
        """Stop acting, then let another lead, then stop watching."""
        self._state = "stopping"
        kopf_task = next((task for task in self._tasks if task.get_name() == "kopf"), None)
        await _cancel(self._tasks - {kopf_task})
        if self._queue:
            await self._queue.close(grace=0 if self._refusal() else _GRACE_SECONDS)
        for helper in (self._inspection, self._configs):
            if helper:
                await helper.close()
        if self._lease:
            await self._lease.release()
        if kopf_task:
            self._stop_kopf.set()
            await asyncio.wait({kopf_task}, timeout=_KOPF_SECONDS)
            await _cancel({kopf_task})

    def _start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        return task

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._tell, number)

    def _tell(self, number: signal.Signals) -> None:
        logger.info("stopping: %s", number.name)
        self._told.set()

    def _refusal(self) -> str | None:
        """Why nothing may be written now; None if this process leads."""
        if self._settings.standalone or (self._lease and self._lease.valid()):
            return None
        return "this process does not lead"

    def _alive(self) -> Answer:
        deaf = self._deafness.found()
        return not deaf, f"deaf: {', '.join(deaf)}" if deaf else self._state

    def _ready(self) -> Answer:
        if self._state == "follower" and self._lease and self._lease.trouble:
            return False, f"follower: {self._lease.trouble}"
        if self._state == "leader" and not self._watching():
            return False, "leader: waiting for the API"
        return self._state in {"leader", "follower"}, self._state

    def _watching(self) -> bool:
        return any(task.get_name() == "kopf" for task in self._tasks)

    def _llm_deployments(self) -> Iterable[Body]:
        known = (self._cache.get(LLM_DEPLOYMENT, key) for key in self._cache.llm_deployments())
        return [body for body in known if body is not None]


async def _first(*tasks: asyncio.Task[Any]) -> None:
    """Wait until one of the tasks ends.

    Raises:
        Exception: what it ended with.
    """
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def _cancel(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    running = [task for task in tasks if task]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
