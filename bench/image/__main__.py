"""The multi-stage images beside those of a single-stage Dockerfile: size, rebuilds, starts.

    make bench-image
    python -m bench.image --hardware cpu --ordered --publish
    python -m bench.image --first-build --pods --json FILE

Builds the same server for the same model in each way with the development cluster's BuildKit, and
removes those images again. Prints a table in Markdown; writes every figure with --json, a picture
with --plot, and with --publish all three into docs/.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime as dt
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.image import ROOT, builds, contexts, layers, plot, pods, python_full, report, starts
from bench.image.variants import HARDWARE, MODEL, MULTI_STAGE, ORDERED, SINGLE_STAGE, Variant
from bench.serving import machine
from bench.serving.servers import ServerError
from dev import environment
from dev.cluster import images, lifecycle
from dev.cluster.commands import ClusterError
from dev.cluster.network import NODE_ADDRESS
from dev.cluster.progress import say, step
from dev.images import sources
from dev.images.sources import Sources
from dev.stand_ins import mirror, models
from dev.stand_ins.mirror import MirrorError
from dev.stand_ins.packages import PackageError
from dev.stand_ins.reach import Real, is_reachable
from dev.stand_ins.stub_library import StubError

HUB = "https://huggingface.co"
DOCS = ROOT / "docs"
PAGE = DOCS / "images.md"
PICTURE = DOCS / "images.svg"
FIGURES = DOCS / "images.json"
MARKS = ("<!-- bench.image: begin -->", "<!-- bench.image: end -->")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    top = argparse.ArgumentParser(
        prog="python -m bench.image",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "--hardware", default=",".join(HARDWARE), help="of these two (%(default)s); gpu: no starts"
    )
    top.add_argument("--rebuilds", type=int, default=1, help="after a code change (%(default)s)")
    top.add_argument("--starts", type=int, default=5, help="of a cpu container (%(default)s)")
    top.add_argument("--pods", type=int, default=0, help="starts of a cpu pod (%(default)s)")
    top.add_argument("--ordered", action="store_true", help="a single-stage one, code last, too")
    top.add_argument("--first-build", action="store_true", help="build without BuildKit's cache")
    top.add_argument(
        "--compression", default="zstd", choices=("zstd", "gzip"), help="of layers (%(default)s)"
    )
    top.add_argument("--python-image", help=f"what {python_full.REFERENCE} is called here")
    top.add_argument("--as-is", action="store_true", help="start and install nothing before")
    top.add_argument("--json", type=Path, help="file for every figure")
    top.add_argument("--plot", type=Path, help="file for a picture (SVG)")
    top.add_argument("--publish", action="store_true", help="write all of it into docs/")
    top.add_argument("--render", type=Path, metavar="JSON", help="measure nothing: show this run")
    return top


def chosen_hardware(text: str) -> list[str]:
    """The hardware that a flag names.

    Raises:
        ValueError: It names another one, or none.
    """
    names = [name for name in text.split(",") if name]
    if not names or set(names) - set(HARDWARE):
        raise ValueError(f"--hardware {text}: {' and '.join(HARDWARE)} are known")
    return names


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure what was chosen.

    Raises:
        ValueError: A flag that cannot be followed.
        ClusterError: An image was not built, or a pod did not start.
        ServerError: A container did not come to answer.
    """
    hardware = chosen_hardware(chosen.hardware)
    compared = [MULTI_STAGE, SINGLE_STAGE, *([ORDERED] if chosen.ordered else [])]
    on = machine.describe()
    if on["load"] > machine.QUIET:
        print(f"load {on['load']}: others use this machine, figures will not hold", file=sys.stderr)
    wanted = [variant.image(each) for each in hardware for variant in compared]
    measured: dict[str, Any] = {}
    with sources.opened(wanted) as found:
        opened = python_full.given(found, chosen.python_image)
        for each in hardware:
            with removed(compared, each) as left:
                measured[each] = weigh(compared, each, opened, chosen, left)
                if each == "cpu":
                    run(compared, measured[each], opened, chosen)
    return {
        "taken": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "commit": machine.commit(ROOT),
        "machine": on,
        "stand_ins": [real.title for real in Real if not is_reachable(real)],
        "settings": {
            "model": MODEL.id,
            "compression": chosen.compression,
            "rebuilds": chosen.rebuilds,
            "starts": chosen.starts,
            "pods": chosen.pods,
            "first_build": chosen.first_build,
        },
        "model_bytes": bytes_of(models.ensure(MODEL)),
        "hardware": measured,
    }


@contextlib.contextmanager
def removed(compared: list[Variant], hardware: str) -> Iterator[set[str]]:
    """Remove the images in the end; yields what BuildKit is to forget then, to be added to."""
    left: set[str] = set()
    try:
        yield left
    finally:
        names = {variant.image(hardware).reference for variant in compared}
        held = names & set(images.ctr("images", "list", "--quiet").split())
        with step(f"remove {len(held)} images and {len(left)} records of BuildKit's cache"):
            if held:
                images.ctr("images", "remove", "--sync", *sorted(held), timeout=600)
            builds.forget(left)


def weigh(
    compared: list[Variant],
    hardware: str,
    opened: Sources,
    chosen: argparse.Namespace,
    left: set[str],
) -> dict[str, Any]:
    """Build each image, count what is in it, and build it again after changes of the code.

    What the builds of others than the project's own image leave in the cache, gigabytes that nobody
    asks for again, is added to `left`.
    """
    found: dict[str, Any] = {}
    had: dict[str, list[layers.Layer]] = {}
    how = {"compression": chosen.compression, "unpack": hardware == "cpu"}
    with tempfile.TemporaryDirectory(prefix="bench-image-") as folder:
        context = Path(folder)
        contexts.copy(context, compared)
        for variant in compared:
            with step(f"{variant.name}, {hardware}: build"), noting(variant, left):
                first = builds.image(
                    variant, hardware, opened, context, afresh=chosen.first_build, **how
                )
                manifest = layers.manifest(first.digest)
                config = layers.config(manifest)
                had[variant.name] = layers.of(manifest, config)
                found[variant.name] = {
                    "preloaded": variant.preloaded,
                    "user": config["config"].get("User") or "root",
                    "layers": [dataclasses.asdict(layer) for layer in had[variant.name]],
                    "census": builds.census(
                        variant, hardware, opened, context, layers.path(config)
                    ),
                    "first_build": figures(first) if chosen.first_build else None,
                    "rebuilds": [],
                    "starts": [],
                    "pods": [],
                }
        for _ in range(chosen.rebuilds):
            # Never a change that was built before: it would be found in the cache.
            contexts.change_code(context, f"changed at {time.time_ns()}")
            for variant in compared:
                title = f"{variant.name}, {hardware}: build after a change of the code"
                with step(title), noting(variant, left):
                    again = builds.image(variant, hardware, opened, context, **how)
                manifest = layers.manifest(again.digest)
                now = layers.of(manifest, layers.config(manifest))
                sent = {"new_bytes": layers.new_bytes(had[variant.name], now)}
                found[variant.name]["rebuilds"].append({**figures(again), **sent})
                had[variant.name] = now
    return found


def noting(variant: Variant, left: set[str]) -> contextlib.AbstractContextManager[None]:
    """Note in `left` what a build leaves in the cache, but for the project's own image."""
    return contextlib.nullcontext() if variant is MULTI_STAGE else builds.noting(left)


def figures(build: builds.Build) -> dict[str, Any]:
    """What is kept of a build."""
    return {"wall": build.wall, "work": build.work, "repeated": build.repeated}


def run(
    compared: list[Variant], found: dict[str, Any], opened: Sources, chosen: argparse.Namespace
) -> None:
    """Start containers and pods of the cpu images, in turn; the first start of each warms up."""
    hub = opened.arguments.get("HF_ENDPOINT", HUB)
    for number in range(chosen.starts + 1 if chosen.starts else 0):
        for variant in compared:
            with step(f"{variant.name}: start a container"):
                started = starts.measure(variant, hub)
            if number:
                found[variant.name]["starts"].append(dataclasses.asdict(started))
    if not chosen.pods:
        return
    with for_pods(opened, hub) as reached, pods.namespace():
        for number in range(chosen.pods + 1):
            for variant in compared:
                with step(f"{variant.name}: start a pod"):
                    ready = pods.measure(variant, reached)
                if number:
                    found[variant.name]["pods"].append(ready)


@contextlib.contextmanager
def for_pods(opened: Sources, hub: str) -> Iterator[str]:
    """The address of the hub that pods reach: a mirror of loopback has one of the node too."""
    if not opened.repositories:
        yield hub
        return
    with mirror.serving(mirror.Mirror(opened.repositories, [], 0, NODE_ADDRESS)) as served:
        yield served.url


def bytes_of(directory: Path) -> int:
    """Bytes of a model directory's files."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def publish(document: dict[str, Any], page: Path = PAGE) -> None:
    """Put the table into the page, between its two marks, and the picture beside it."""
    begin, end = MARKS
    text = page.read_text()
    shown = f"{begin}\n\n{report.markdown(document)}\n\n{end}"
    pattern = re.escape(begin) + ".*" + re.escape(end)
    page.write_text(re.sub(pattern, lambda _: shown, text, count=1, flags=re.S))


def main() -> int:
    """Measure, or read what was measured, and show it."""
    top = parser()
    chosen = top.parse_args()
    try:
        document = json.loads(chosen.render.read_text()) if chosen.render else measured(chosen)
    except ValueError as error:
        top.error(str(error))
    except (ClusterError, MirrorError, PackageError, ServerError, StubError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if chosen.publish:
        publish(document)
    for file in filter(None, (chosen.json, FIGURES if chosen.publish else None)):
        file.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    for file in filter(None, (chosen.plot, PICTURE if chosen.publish else None)):
        plot.draw(document, file)
    say(report.markdown(document))
    return 0


def measured(chosen: argparse.Namespace) -> dict[str, Any]:
    """Prepare and measure; nothing is built for flags that cannot be followed."""
    chosen_hardware(chosen.hardware)
    if not chosen.as_is:
        environment.prepare()
        lifecycle.up(runtime_only=not chosen.pods)
    return measure(chosen)


if __name__ == "__main__":
    sys.exit(main())
