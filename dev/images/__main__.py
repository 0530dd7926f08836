"""The command line: `python3 -m dev.images build [NAME ...]`."""

import argparse
import sys
import time
from collections.abc import Sequence

from dev.cluster import lifecycle, runtime
from dev.cluster.commands import ClusterError
from dev.cluster.progress import say
from dev.images import builder, catalog, sources
from dev.stand_ins.mirror import MirrorError
from dev.stand_ins.packages import PackageError
from dev.stand_ins.stub_library import StubError


def parser() -> argparse.ArgumentParser:
    """The commands and their flags."""
    top = argparse.ArgumentParser(
        prog="python3 -m dev.images",
        description="Build the project's images into the development cluster.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="build images; without names, all of them")
    build.add_argument("names", nargs="*", metavar="NAME", help="see --list")
    build.add_argument("--list", action="store_true", help="list the images and build none")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    chosen = parser().parse_args(arguments)
    if chosen.list:
        for image in catalog.ALL:
            say(f"{image.name:16} {image.reference:40} {image.dockerfile} {image.target}")
        return 0
    try:
        build([catalog.named(name) for name in chosen.names] or list(catalog.ALL))
    except KeyError as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        return 2
    except (ClusterError, MirrorError, PackageError, StubError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def build(images: list[catalog.Image]) -> None:
    """Build `images` one after the other: they share stages, and two cores."""
    began = time.monotonic()
    lifecycle.up(runtime_only=True)
    with sources.opened(images) as opened:
        for image in images:
            builder.build(image, opened)
    runtime.prune_images()  # what was replaced is gigabytes
    say(f"{len(images)} images in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
