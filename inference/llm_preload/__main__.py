"""The command line: `python -m llm_preload fetch|convert|prove`, run by the image build."""

import argparse
import os
import sys
import time
from pathlib import Path

from llm_preload import PreloadError, manifest

# The time of every file, so that one revision gives one layer.
EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH") or 0)


def main() -> int:
    """Run one command; return its exit code. The last line on stderr says what is wrong."""
    chosen = _parser().parse_args()
    try:
        _say(chosen.run(chosen))
    except PreloadError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llm_preload", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fetch = commands.add_parser("fetch", help="fetch a model and list its files")
    fetch.add_argument("--id", required=True)
    fetch.add_argument("--revision", default="main")
    fetch.add_argument("--scratch", type=Path, required=True, help="keeps interrupted downloads")
    fetch.set_defaults(run=_fetch)
    convert = commands.add_parser("convert", help="store the weights in another type")
    convert.add_argument("--dtype", required=True)
    convert.set_defaults(run=_convert)
    prove = commands.add_parser("prove", help="prove that a model directory loads offline")
    prove.set_defaults(run=_prove)
    for command in (fetch, convert, prove):
        command.add_argument("directory", type=Path)
    return parser


# Each command imports only what it needs: fetching runs without torch, proving without the hub.


def _fetch(chosen: argparse.Namespace) -> str:
    from llm_preload.fetch import fetch  # noqa: PLC0415

    began = time.monotonic()
    revision = fetch(chosen.id, chosen.revision, chosen.directory, chosen.scratch)
    size = manifest.write(
        chosen.directory, model_id=chosen.id, requested=chosen.revision, revision=revision
    )
    _settle(chosen.directory)
    seconds = time.monotonic() - began
    return f"{chosen.id} at {revision}: {size / 1e6:.0f} MB in {seconds:.1f} s"


def _convert(chosen: argparse.Namespace) -> str:
    from llm_preload.convert import convert  # noqa: PLC0415

    convert(chosen.directory, chosen.dtype)
    size = manifest.rewrite(chosen.directory)
    _settle(chosen.directory)
    return f"weights stored as {chosen.dtype}: {size / 1e6:.0f} MB"


def _prove(chosen: argparse.Namespace) -> str:
    from llm_preload.prove import prove  # noqa: PLC0415

    return "loads offline: " + prove(chosen.directory)


def _settle(directory: Path) -> None:
    """Give every file the same time and mode: one revision makes one layer."""
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (EPOCH, EPOCH))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
