"""What the control plane takes when nobody reconciles: the floor under every operator's time.

The operator makes the objects of one LLMDeployment and is then held still. Copies of them are
created for all the others by bare requests, each the moment its LLMDeployment is accepted, as an
operator would that needs no time at all. Knows nothing of what the objects mean.
"""

import asyncio
import json
import os
import signal
import time
from dataclasses import dataclass, field
from typing import Any

from bench.reconcile import process
from bench.reconcile.cluster import LLM_DEPLOYMENT, Body, Kind, placement
from bench.reconcile.phases import Run, llm_deployment

_PATTERN = "pattern"
_WRITERS = 16
_OF_THE_SERVER = ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")


@dataclass
class Floor:
    """Times in seconds.

    Attributes:
        accepting: From the first LLMDeployment sent to the last accepted.
        objects_after: From the last accepted until the last object was created.
        cpu: CPU seconds by process, until then.
    """

    accepting: float = 0.0
    objects_after: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)


async def floor(run: Run) -> Floor:
    """Create all LLMDeployments and all their objects, with no operator at work."""
    patterns = await _patterns(run)
    os.kill(run.operator.pid, signal.SIGSTOP)
    try:
        return await _create(run, patterns)
    finally:
        os.kill(run.operator.pid, signal.SIGCONT)


async def _patterns(run: Run) -> list[tuple[Kind, Body]]:
    """The objects that the operator makes for an LLMDeployment of the run's sort."""
    body = llm_deployment(_PATTERN, **placement(run.namespace))
    await run.cluster.request("POST", LLM_DEPLOYMENT.path(run.namespace), body)
    found: list[tuple[Kind, Body]] = []
    async with asyncio.timeout(run.within):
        while len(found) < len(run.kinds):
            await asyncio.sleep(0.5)
            found = [
                (kind, item)
                for kind in run.kinds
                for item in (await run.cluster.items(kind.path(run.namespace)))[0]
            ]
    return [(kind, _bare(item)) for kind, item in found]


def _bare(item: Body) -> Body:
    metadata = {
        key: value
        for key, value in item["metadata"].items()
        if key not in (*_OF_THE_SERVER, "ownerReferences")
    }
    spec = {key: value for key, value in item["spec"].items() if not key.startswith("clusterIP")}
    return {"metadata": metadata, "spec": spec}


async def _create(run: Run, patterns: list[tuple[Kind, Body]]) -> Floor:
    names = [f"model-{index:05}" for index in range(run.count)]
    accepted: asyncio.Queue[str | None] = asyncio.Queue()
    before, began = process.cluster_cpu(), time.monotonic()

    async def follow() -> None:
        while (name := await accepted.get()) is not None:
            for kind, pattern in patterns:
                await run.cluster.request("POST", kind.path(run.namespace), _named(pattern, name))

    async with asyncio.TaskGroup() as group:
        for _ in range(_WRITERS):
            group.create_task(follow())
        for index, name in enumerate(names):
            body = llm_deployment(name, **placement(run.namespace))
            await run.cluster.request("POST", LLM_DEPLOYMENT.path(run.namespace), body)
            accepted.put_nowait(name)
            if run.rate:
                await asyncio.sleep(max(0.0, began + (index + 1) / run.rate - time.monotonic()))
        last = time.monotonic()
        for _ in range(_WRITERS):
            accepted.put_nowait(None)
    after = process.cluster_cpu()
    used = {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
    return Floor(accepting=last - began, objects_after=time.monotonic() - last, cpu=used)


def _named(pattern: Body, name: str) -> Body:
    text = json.dumps(pattern).replace(f'"{_PATTERN}"', json.dumps(name))
    named: dict[str, Any] = json.loads(text)
    return named
