"""Which of several operators acts: the one whose name stands in a Lease.

Knows how a Lease is taken, renewed, lost and given back. Does not know what the leader does.

No two machines' clocks are compared. A follower counts from when it saw the record change last; the
leader from before it sent the renewal that changed it, which is earlier, and stops after
`deadline`, which is shorter than `duration`. Clocks need only run at about the same speed.

A follower asks once a second. A watch would tell sooner by half a second on average, but it can
fall silent without a word, and what it should tell is exactly that somebody fell silent.
"""

import asyncio
import datetime as dt
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from llm_operator.kube import HTTP_NOT_FOUND, ApiError, Body, Kube
from llm_operator.resources import EVENT, Resource

LEASE = Resource("coordination.k8s.io/v1", "Lease", "leases")

HTTP_CONFLICT = 409

logger = logging.getLogger(__name__)


def clock() -> float:
    """Seconds that also pass while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class LeaseLostError(Exception):
    """This process leads no more. The message is one sentence that says why."""


@dataclass(frozen=True)
class Timing:
    """How long things may take, in seconds."""

    duration: float = 15
    """A record that did not change for so long is nobody's any more."""
    deadline: float = 10
    """A leader that was not confirmed for so long stops. The rest of `duration` is for requests
    that are under way."""
    renew: float = 2
    """Between two renewals."""
    poll: float = 1
    """Between two looks of a follower, and between two tries of a renewal."""
    request: float = 4
    """What one request may take: a deadline leaves time for more than one."""


@dataclass(frozen=True)
class Record:
    """What a Lease says.

    Attributes:
        holder: Who leads; empty if nobody does.
        duration: Seconds without a change after which another may lead.
        acquired: When the holder began, as it wrote it.
        renewed: When it said so last, as it wrote it.
        transitions: How often another came to lead.
    """

    holder: str = ""
    duration: float = Timing.duration
    acquired: str = ""
    renewed: str = ""
    transitions: int = 0

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        """The record in a Lease."""
        spec = body.get("spec", {})
        return cls(
            holder=spec.get("holderIdentity", ""),
            duration=spec.get("leaseDurationSeconds", Timing.duration),
            acquired=spec.get("acquireTime", ""),
            renewed=spec.get("renewTime", ""),
            transitions=spec.get("leaseTransitions", 0),
        )

    def spec(self) -> Body:
        """The record as the spec of a Lease."""
        return {
            "holderIdentity": self.holder,
            "leaseDurationSeconds": max(1, round(self.duration)),
            "acquireTime": self.acquired,
            "renewTime": self.renewed,
            "leaseTransitions": self.transitions,
        }


@dataclass(frozen=True)
class Identity:
    """Who a process is: the pod, and which of the processes that ran in it.

    Attributes:
        pod: Name of the pod; empty outside of one.
        process: Name of this process, that no other ever has.
    """

    pod: str
    process: str

    @classmethod
    def new(cls, *, pod: str, host: str) -> Self:
        """The identity of a process that begins."""
        return cls(pod, f"{pod or host}_{secrets.token_hex(4)}")

    def succeeds(self, holder: str) -> bool:
        """Whether `holder` was an earlier process of this pod: it ended before this one began."""
        return bool(self.pod) and holder.rpartition("_")[0] == self.pod


class Sight:
    """What a follower saw of the record, and since when it stands unchanged."""

    def __init__(self) -> None:
        self._record: Record | None = None
        self._since = 0.0

    @property
    def holder(self) -> str:
        """Who led when it was seen last; empty if nobody did."""
        return self._record.holder if self._record else ""

    def see(self, record: Record, *, now: float) -> None:
        """Take note of the record as it is at the time `now`."""
        if record != self._record:
            self._record, self._since = record, now

    def may_be_taken(self, identity: Identity, *, now: float) -> bool:
        """Whether the record seen last keeps `identity` from leading no more."""
        record = self._record
        if record is None:
            return False
        return (
            not record.holder
            or record.holder == identity.process  # an answer to a try of ours was lost
            or identity.succeeds(record.holder)
            or now - self._since >= record.duration
        )


class Lease:
    """The Lease that the operators of one installation share.

    Args:
        kube: A connection for this alone: renewals must not queue behind other requests.
        namespace: Namespace of the Lease.
        name: Its name.
        identity: Who this process is.
        timing: How long things may take.
        now: The clock, in seconds.
    """

    def __init__(
        self,
        *,
        kube: Kube,
        namespace: str,
        name: str,
        identity: Identity,
        timing: Timing | None = None,
        now: Callable[[], float] = clock,
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._timing = timing or Timing()
        self._now = now
        self._body: Body = {}
        self._confirmed: float | None = None
        self.trouble = ""
        """Why the Lease cannot be asked for or renewed; empty if it can."""

    def valid(self) -> bool:
        """Whether this process leads: no other can, since less than the deadline passed."""
        return self._left() > 0

    def _left(self) -> float:
        """Seconds until this process must stop; none if it does not lead."""
        if self._confirmed is None:
            return 0
        return self._confirmed + self._timing.deadline - self._now()

    async def acquire(self) -> None:
        """Follow until there is no leader, then lead. Writes nothing as long as there is one."""
        sight = Sight()
        while True:
            if await self._try(sight):
                break
            await asyncio.sleep(self._timing.poll)
        logger.info("leading as %s", self._identity.process)

    async def _try(self, sight: Sight) -> bool:
        try:
            async with asyncio.timeout(self._timing.request):
                return await self._look(sight)
        except (ApiError, TimeoutError) as error:
            self._tell(f"cannot ask for the Lease {self._namespace}/{self._name}", error)
        return False

    async def _look(self, sight: Sight) -> bool:
        body = await self._kube.get(LEASE, self._namespace, self._name)
        self.trouble = ""
        if body is None:
            return await self._write({}, Record())
        record = Record.read(body)
        before = sight.holder
        sight.see(record, now=self._now())
        if sight.may_be_taken(self._identity, now=self._now()):
            return await self._write(body, record)
        if sight.holder != before:
            logger.info("following: %s leads", sight.holder)
        return False

    async def hold(self) -> None:
        """Renew for as long as this process leads.

        Raises:
            LeaseLostError: it leads no more, because another does or nobody confirmed it in time.
        """
        while True:
            await asyncio.sleep(self._timing.poll if self.trouble else self._timing.renew)
            left = self._left()
            if left <= 0:
                break
            try:
                async with asyncio.timeout(min(self._timing.request, left)):
                    await self._renew()
            except (ApiError, TimeoutError) as error:
                self._tell(f"cannot renew the Lease {self._namespace}/{self._name}", error)
            else:
                self.trouble = ""
        self._confirmed = None
        raise LeaseLostError(
            f"the Lease {self._namespace}/{self._name} could not be renewed for"
            f" {self._timing.deadline:g} s"
        )

    async def _renew(self) -> None:
        if await self._write(self._body, Record.read(self._body)):
            return
        body = await self._kube.get(LEASE, self._namespace, self._name)
        holder = Record.read(body).holder if body else self._identity.process
        if holder != self._identity.process:
            self._confirmed = None
            raise LeaseLostError(f"{holder or 'nobody'} leads instead")
        self._body = body or {}  # edited or deleted, and still nobody else's
        await self._write(self._body, Record.read(self._body))

    async def release(self) -> None:
        """Give the Lease back, so that another may lead at once. Nothing may be written after."""
        if not self.valid():
            return
        self._confirmed = None
        try:
            async with asyncio.timeout(self._timing.request):
                given = await self._give_back()
        except (ApiError, TimeoutError) as error:
            self._tell("the Lease is not given back and runs out by itself", error)
        else:
            logger.info("gave the Lease back" if given else "the Lease is another's already")

    async def _give_back(self) -> bool:
        """Write that nobody leads. False if this process did not lead any more."""
        while Record.read(self._body).holder == self._identity.process:
            record = replace(Record.read(self._body), holder="", duration=1, renewed=_time())
            try:
                await self._kube.replace(LEASE, {**self._body, "spec": record.spec()})
            except ApiError as error:
                if error.status != HTTP_CONFLICT:
                    raise
                # A renewal that was broken off has arrived after all.
                self._body = await self._kube.get(LEASE, self._namespace, self._name) or {}
            else:
                return True
        return False

    async def announce(self) -> None:
        """Write an Event about the new leader."""
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        event = {
            "apiVersion": "v1",
            "kind": EVENT.kind,
            "metadata": {
                "namespace": self._namespace,
                "name": f"{self._name}.{secrets.token_hex(8)}",
            },
            "involvedObject": {
                "apiVersion": LEASE.api_version,
                "kind": LEASE.kind,
                "namespace": self._namespace,
                "name": self._name,
                "uid": self._body["metadata"]["uid"],
            },
            "type": "Normal",
            "reason": "LeaderElection",
            "message": f"{self._identity.process} became leader",
            "source": {"component": "llm-operator"},
            "reportingComponent": "llm-operator",
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            async with asyncio.timeout(self._timing.request):
                await self._kube.create(EVENT, event)
        except (ApiError, TimeoutError) as error:
            logger.warning("event not written: %s", _text(error))

    async def _write(self, body: Body, record: Record) -> bool:
        """Write this process into the Lease. False if somebody else wrote meanwhile.

        Raises:
            ApiError: it was refused for another reason, or there was no answer.
        """
        sent, when = self._now(), _time()
        ours = record.holder == self._identity.process
        record = Record(
            holder=self._identity.process,
            duration=self._timing.duration,
            acquired=record.acquired if ours else when,
            renewed=when,
            transitions=record.transitions + (0 if ours or not body else 1),
        )
        try:
            if body:
                # The version in the metadata makes it a conflict if another wrote since.
                answer = await self._kube.replace(LEASE, {**body, "spec": record.spec()})
            else:
                answer = await self._kube.create(LEASE, self._new(record))
        except ApiError as error:
            if error.status == HTTP_CONFLICT or (body and error.status == HTTP_NOT_FOUND):
                return False
            raise
        self._body, self._confirmed = answer, sent
        return True

    def _new(self, record: Record) -> Body:
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"namespace": self._namespace, "name": self._name},
            "spec": record.spec(),
        }

    def _tell(self, what: str, error: Exception) -> None:
        """Log a trouble once, not at every try."""
        text = f"{what}: {_text(error)}"
        if text != self.trouble:
            logger.warning("%s", text)
        self.trouble = text


def _text(error: Exception) -> str:
    return str(error) or "no answer in time"


def _time() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
