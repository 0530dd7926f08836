"""Builds with BuildKit, timed step by step, and what they leave in its cache.

Knows `buildctl` and what it prints as JSON; does not know what is built, nor what the times say.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.image import contexts
from bench.image.variants import Variant
from dev.cluster import paths, tools
from dev.cluster.commands import ClusterError, run
from dev.images import builder
from dev.images.sources import Sources

_TAIL_LINES = 30


@dataclass(frozen=True)
class Step:
    """One step of a build.

    Attributes:
        name: As BuildKit calls it.
        seconds: What it took; 0 if it was found in the cache.
        cached: Whether it was found in the cache.
    """

    name: str
    seconds: float
    cached: bool


@dataclass(frozen=True)
class Build:
    """One build that ended well.

    Attributes:
        wall: Seconds from its start to its end, the export with compression included.
        steps: Its steps, as they were begun.
        digest: Of the image's manifest; empty if no image was made.
    """

    wall: float
    steps: list[Step]
    digest: str

    @property
    def work(self) -> float:
        """Seconds of all steps that were not found in the cache, added up."""
        return sum(step.seconds for step in self.steps)

    @property
    def repeated(self) -> list[str]:
        """The steps of the Dockerfile that were not found in the cache."""
        return [step.name for step in self.steps if not step.cached and _is_step(step.name)]


def image(
    variant: Variant,
    hardware: str,
    sources: Sources,
    context: Path,
    *,
    compression: str,
    unpack: bool,
    afresh: bool = False,
) -> Build:
    """Build an image into containerd, its layers compressed as a registry would get them.

    Args:
        variant: which way.
        hardware: cpu or gpu.
        sources: where its parts come from.
        context: the folder that it is built from.
        compression: zstd or gzip, at BuildKit's default level.
        unpack: whether it is to be run.
        afresh: whether to take no step from the cache; caches of packages stay.

    Raises:
        ClusterError: It was not built; holds the end of what the build said.
    """
    what = variant.image(hardware)
    output = (
        f"type=image,name={what.reference},unpack={str(unpack).lower()},"
        f"compression={compression},force-compression=true,oci-mediatypes=true"
    )
    command = builder.command(
        what, given(variant, hardware, sources), output, context=context, progress="rawjson"
    )
    return _run([*command, "--no-cache"] if afresh else command, what.reference)


def census(
    variant: Variant, hardware: str, sources: Sources, context: Path, path: str
) -> dict[str, Any]:
    """What an image holds, counted in a step beside it; its own steps come from the cache.

    Args:
        variant: which way it is built.
        hardware: cpu or gpu.
        sources: where its parts come from.
        context: the folder that it is built from.
        path: the folders that its own PATH names.

    Raises:
        ClusterError: It could not be counted.
    """
    what = variant.image(hardware)
    dockerfile = context / f"{what.dockerfile}.census"
    text = (context / what.dockerfile).read_text()
    dockerfile.write_text(contexts.with_census(text, what.target, python=variant.python, path=path))
    counted = dataclasses.replace(what, dockerfile=dockerfile.name, target=contexts.CENSUS_STAGE)
    with tempfile.TemporaryDirectory(prefix="bench-image-") as folder:
        output = f"type=local,dest={folder}"
        command = builder.command(
            counted, given(variant, hardware, sources), output, context=context, progress="rawjson"
        )
        _run(command, f"the census of {what.reference}")
        found: dict[str, Any] = json.loads(Path(folder, contexts.CENSUS_FILE).read_text())
    return found


def given(variant: Variant, hardware: str, sources: Sources) -> Sources:
    """The sources with the arguments of a variant."""
    arguments = {**sources.arguments, **variant.build_arguments(hardware)}
    return dataclasses.replace(sources, arguments=arguments)


def _run(command: list[str], what: str) -> Build:
    with tempfile.NamedTemporaryFile(prefix="bench-image-") as metadata:
        began = time.perf_counter()
        done = subprocess.run(
            [*command, f"--metadata-file={metadata.name}"],
            capture_output=True,
            text=True,
            check=False,
        )
        wall = time.perf_counter() - began
        told = json.loads(Path(metadata.name).read_text() or "{}")
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    if done.returncode:
        tail = "\n".join(said(lines)[-_TAIL_LINES:])
        raise ClusterError(f"{what} was not built; the end of what the build said:\n{tail}")
    return Build(wall, steps(lines), told.get("containerimage.digest", ""))


def steps(lines: Iterable[str]) -> list[Step]:
    """The steps of a build, from what `buildctl --progress=rawjson` prints.

    BuildKit tells of a step several times; the last time says the most. A step that it begins
    twice, as it does to send the context and to look at it, counts once, with its latest times.
    """
    found: dict[str, dict[str, Any]] = {}
    for status in _statuses(lines):
        for vertex in status.get("vertexes") or ():
            found[vertex["digest"]] = {**found.get(vertex["digest"], {}), **vertex}
    begun = [vertex for vertex in found.values() if vertex.get("started")]
    begun.sort(key=lambda vertex: _moment(vertex["started"]))
    return [_step(vertex) for vertex in begun]


def said(lines: Iterable[str]) -> list[str]:
    """What the steps of a build printed, and what buildctl itself did, line by line."""
    shown: list[str] = []
    for line in lines:
        if (status := _status(line)) is None:
            shown.append(line)
            continue
        for log in status.get("logs") or ():
            shown += base64.b64decode(log["data"]).decode("utf-8", "replace").splitlines()
    return shown


def _statuses(lines: Iterable[str]) -> list[dict[str, Any]]:
    return [status for line in lines if (status := _status(line)) is not None]


def _status(line: str) -> dict[str, Any] | None:
    try:
        status = json.loads(line)
    except ValueError:
        return None
    return status if isinstance(status, dict) else None


def _step(vertex: dict[str, Any]) -> Step:
    cached = bool(vertex.get("cached"))
    ended = vertex.get("completed") or vertex["started"]
    seconds = (_moment(ended) - _moment(vertex["started"])).total_seconds()
    return Step(vertex["name"], 0 if cached else max(0.0, seconds), cached)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _is_step(name: str) -> bool:
    """Whether a step is one of the Dockerfile's own: `[stage 2/5] RUN …`, `[2/5] RUN …`."""
    return re.match(r"\[([^\]]+ )?\d+/\d+\] ", name) is not None


def cached_records() -> set[str]:
    """The ids of what lies in BuildKit's cache."""
    return set(_buildctl("du", "--format={{range .}}{{println .ID}}{{end}}").split())


@contextmanager
def noting(records: set[str]) -> Iterator[None]:
    """Add to `records` what comes to lie in BuildKit's cache while the block runs."""
    before = cached_records()
    try:
        yield
    finally:
        records |= cached_records() - before


def forget(records: Iterable[str]) -> None:
    """Remove these from BuildKit's cache, but for what is in use."""
    if chosen := [f"--filter=id=={record}" for record in sorted(records)]:
        _buildctl("prune", *chosen)


def _buildctl(*arguments: str) -> str:
    address = f"--addr=unix://{paths.BUILDKIT_SOCKET}"
    return run([tools.path("buildctl"), address, *arguments], timeout=600)
