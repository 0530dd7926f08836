"""What is measured, phase by phase, and in which order things happen in each.

Knows LLMDeployments as a user writes them. Does not know how figures are shown.
"""

import asyncio
import contextlib
import datetime as dt
import os
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field

from bench.reconcile import audit, process
from bench.reconcile.cluster import DEPLOYMENT, LLM_DEPLOYMENT, Body, Cluster, Kind, placement, user
from bench.reconcile.process import Operator
from bench.reconcile.sightings import Moments, Sightings, watching

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
UNSCHEDULABLE = "Unschedulable"

_SETTLE_SECONDS = 5
_SETTLE_WITHIN = 120
_PAUSE_SECONDS = 0.5
"""Between two changes of one object: each meets an operator that is idle."""


@dataclass(frozen=True)
class Run:
    """One run: against which cluster, where, with how many objects.

    Attributes:
        kinds: What each LLMDeployment has one of, in an unchanged spec.
        within: Most seconds for one phase to reach its end.
        rate: LLMDeployments sent in a second; 0 for as fast as they are accepted.
    """

    cluster: Cluster
    operator: Operator
    namespace: str
    count: int
    kinds: Collection[Kind]
    within: float
    rate: float = 0.0


@dataclass
class Cost:
    """What happened between two moments.

    Attributes:
        seconds: Time that passed.
        writes: The operator's writes, by verb and resource, from the audit log.
        requests: The operator's requests, by verb and resource, as it sent them.
        cpu: CPU seconds by process; the operator's is called operator.
    """

    seconds: float = 0.0
    writes: dict[str, int] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)


@dataclass
class Convergence:
    """From nothing to all Ready. Times in seconds.

    Attributes:
        accepting: From the first LLMDeployment sent to the last accepted.
        objects_after: From the last accepted until the last object of each kind was there.
        pods_ready_after: From the last accepted until every LLMDeployment had a Ready pod.
        ready_after: From the last accepted until all were Ready.
        ready_after_pods: From the last pod Ready to the last LLMDeployment Ready.
        lag_p50: Median of one pod Ready to its LLMDeployment Ready.
        lag_p99: 99th percentile of the same.
        cost: What it cost until no write had come for some seconds.
        peak_rss: The operator's, in MB.
        rss: The operator's afterwards, in MB.
    """

    accepting: float = 0.0
    objects_after: dict[str, float] = field(default_factory=dict)
    pods_ready_after: float = 0.0
    ready_after: float = 0.0
    ready_after_pods: float = 0.0
    lag_p50: float = 0.0
    lag_p99: float = 0.0
    cost: Cost = field(default_factory=Cost)
    peak_rss: float = 0.0
    rss: float = 0.0


@dataclass
class Latency:
    """From a change of one spec to the Deployment changed, in seconds, one value a sample."""

    since_sent: list[float] = field(default_factory=list)
    since_accepted: list[float] = field(default_factory=list)


def llm_deployment(name: str, **spec: object) -> Body:
    """An LLMDeployment."""
    return {
        "apiVersion": LLM_DEPLOYMENT.group_version,
        "kind": LLM_DEPLOYMENT.name,
        "metadata": {"name": name},
        "spec": {"model": {"id": MODEL}, "target": "cpu", **spec},
    }


async def converge(run: Run) -> Convergence:
    """Create all LLMDeployments at once and wait until all are Ready."""
    names = _names(run)
    bodies = [llm_deployment(name, **placement(run.namespace)) for name in names]
    figures = Convergence()
    async with watching(run.cluster, run.namespace, run.kinds) as seen, _cost(run) as figures.cost:
        began, accepted = await _create(run, bodies)
        figures.accepting = accepted - began
        for kind in run.kinds:
            await _until_all(run, seen.there[kind.plural], seen, names, kind.plural)
        await _until_all(run, seen.pod_ready, seen, names, "pods Ready")
        await _until_all(run, seen.ready, seen, names, "LLMDeployments Ready")
        await _settled(run)
    figures.objects_after = {
        kind.plural: max(seen.there[kind.plural].values()) - accepted for kind in run.kinds
    }
    last_pod, last = max(seen.pod_ready.values()), max(seen.ready.values())
    figures.pods_ready_after, figures.ready_after = last_pod - accepted, last - accepted
    figures.ready_after_pods = last - last_pod
    lags = [seen.ready[name] - seen.pod_ready[name] for name in names]
    figures.lag_p50, figures.lag_p99 = percentile(lags, 50), percentile(lags, 99)
    figures.peak_rss, figures.rss = run.operator.peak_rss, run.operator.rss
    return figures


async def pend(run: Run) -> Convergence:
    """Create all LLMDeployments where no node fits, until each says so."""
    names = _names(run)
    nowhere = {"nodeSelector": {"bench.llm-operator.dev/nowhere": "true"}}
    bodies = [llm_deployment(name, **nowhere) for name in names]
    figures = Convergence()
    async with watching(run.cluster, run.namespace, run.kinds) as seen, _cost(run) as figures.cost:
        began, accepted = await _create(run, bodies)
        figures.accepting = accepted - began
        await seen.until(
            lambda: sum(reason == UNSCHEDULABLE for reason in seen.reasons.values()) == len(names),
            within=run.within,
            what="all LLMDeployments Unschedulable",
        )
        figures.ready_after = time.monotonic() - accepted
        await _settled(run)
    figures.objects_after = {
        kind.plural: max(seen.there[kind.plural].values()) - accepted for kind in run.kinds
    }
    figures.peak_rss, figures.rss = run.operator.peak_rss, run.operator.rss
    return figures


async def idle(run: Run, seconds: float) -> Cost:
    """Do nothing for so long."""
    async with _cost(run) as cost:
        await asyncio.sleep(seconds)
    return cost


async def change(run: Run, samples: int) -> Latency:
    """Change one spec again and again, each time when the last change is long done."""
    name, figures = "latency", Latency()
    await run.cluster.request(
        "POST", LLM_DEPLOYMENT.path(run.namespace), llm_deployment(name, replicas=0)
    )
    moments: dict[str, float] = {}
    changed = asyncio.Event()

    async def look() -> None:
        path = DEPLOYMENT.path(run.namespace)
        _, version = await run.cluster.items(path)
        async for _, body in run.cluster.watch(path, version, name=name):
            moments.setdefault(_timeout_of(body), time.monotonic())
            changed.set()

    async with asyncio.TaskGroup() as group:
        looking = group.create_task(look())
        await asyncio.sleep(2)
        for sample in range(samples):
            value = str(1000 + sample)
            sent = time.monotonic()
            await run.cluster.merge(
                LLM_DEPLOYMENT.path(run.namespace, name),
                {"spec": {"server": {"requestTimeoutSeconds": int(value)}}},
            )
            accepted = time.monotonic()
            async with asyncio.timeout(run.within):
                while value not in moments:
                    changed.clear()
                    await changed.wait()
            figures.since_sent.append(moments[value] - sent)
            # The watch may tell of the change before the answer to the change itself is read.
            figures.since_accepted.append(max(0.0, moments[value] - accepted))
            await asyncio.sleep(_PAUSE_SECONDS)
        looking.cancel()
    return figures


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many percent do not exceed."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _names(run: Run) -> list[str]:
    return [f"model-{index:05}" for index in range(run.count)]


async def _create(run: Run, bodies: Sequence[Body]) -> tuple[float, float]:
    """Create them all. Returns when the first was sent and when the last was accepted."""
    began = time.monotonic()
    path = LLM_DEPLOYMENT.path(run.namespace)
    # In tenths of a second, as a client that sends one after the other comes near to it.
    batch = max(1, round(run.rate / 10)) if run.rate else len(bodies)
    for start in range(0, len(bodies), batch):
        await run.cluster.create_all(path, bodies[start : start + batch])
        if run.rate:
            await asyncio.sleep(max(0.0, began + (start + batch) / run.rate - time.monotonic()))
    return began, time.monotonic()


async def _until_all(
    run: Run, moments: Moments, seen: Sightings, names: Sequence[str], what: str
) -> None:
    def done() -> bool:
        return len(moments) >= len(names)

    try:
        await seen.until(done, within=run.within, what=f"all {what}")
    except TimeoutError as error:
        missing = [name for name in names if name not in moments]
        raise TimeoutError(f"{error}; {len(missing)} missing, such as {missing[:3]}") from None


async def _settled(run: Run) -> None:
    """Wait until the operator has not written for some seconds.

    Raises:
        TimeoutError: it goes on writing.
    """
    async with asyncio.timeout(_SETTLE_WITHIN):
        before = None
        while (now := audit.writes(user(run.namespace))) != before:
            before = now
            await asyncio.sleep(_SETTLE_SECONDS)


@contextlib.asynccontextmanager
async def _cost(run: Run) -> AsyncIterator[Cost]:
    """What happens in the block, known at its end."""
    cost, began = Cost(), time.monotonic()
    since = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    requests, cpu = await run.operator.requests(), _cpu(run)
    yield cost
    cost.cpu = {name: used - cpu.get(name, 0) for name, used in _cpu(run).items()}
    cost.requests = dict(Counter(await run.operator.requests()) - Counter(requests))
    cost.seconds = time.monotonic() - began
    await asyncio.sleep(1)  # the audit log is written in batches
    cost.writes = dict(audit.writes(user(run.namespace), since=since))


def _cpu(run: Run) -> dict[str, float]:
    own = process.cpu_seconds(os.getpid())
    return {"operator": run.operator.cpu, "bench": own, **process.cluster_cpu()}


def _timeout_of(deployment: Body) -> str:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    values: dict[str, str] = {each["name"]: each.get("value", "") for each in container["env"]}
    return values.get("LLM_REQUEST_TIMEOUT_SECONDS", "")
