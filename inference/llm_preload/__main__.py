"""The command line: `python -m llm_preload fetch|convert|prove`, run by the image build."""

import argparse
import os
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

from llm_preload import PreloadError, local, manifest

# The time of every file, so that one revision gives one layer.
EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH") or 0)
_LOCAL = "local"
_NO_MODEL = "no model: the server takes one that is mounted or downloaded"


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
    fetch.add_argument("--id", default="", help="without one there is no model")
    fetch.add_argument("--revision", default="", help="main when empty")
    fetch.add_argument("--file", default="", help="a GGUF file to take in place of safetensors")
    fetch.add_argument("--context", type=Path, required=True, help="may hold a model itself")
    fetch.add_argument("--scratch", type=Path, required=True, help="keeps interrupted downloads")
    fetch.set_defaults(run=_fetch)
    convert = commands.add_parser("convert", help="make plain weights of a GGUF or another type")
    convert.add_argument("--dtype", default="", help="the weights' own when empty")
    convert.set_defaults(run=_convert)
    prove = commands.add_parser("prove", help="prove that a model directory loads offline")
    prove.set_defaults(run=_prove)
    for command in (fetch, convert, prove):
        command.add_argument("directory", type=Path)
    return parser


# Each command imports only what it needs: fetching runs without torch, proving without the hub.


def _fetch(chosen: argparse.Namespace) -> str:
    began = time.monotonic()
    revision: str | None = None
    if is_local := local.is_given(chosen.context):
        if not chosen.id:
            raise PreloadError("a model from a directory wants --build-arg MODEL_ID=…, its name")
        local.take(chosen.context, chosen.directory, file=chosen.file)
    elif not chosen.id:
        if named := chosen.file or chosen.revision:
            raise PreloadError(f"{named} is of no model without --build-arg MODEL_ID=…")
        return _NO_MODEL
    else:
        from llm_preload.fetch import fetch  # noqa: PLC0415

        where = (chosen.id, chosen.revision or "main", chosen.directory, chosen.scratch)
        revision = fetch(*where, file=chosen.file)
    requested = _LOCAL if is_local else chosen.revision or "main"
    files = manifest.write(
        chosen.directory, model_id=chosen.id, requested=requested, revision=revision
    )
    revision = revision or manifest.digest(files)
    if is_local and chosen.revision not in ("", _LOCAL, revision):
        raise PreloadError(f"the directory's content is {revision}, not {chosen.revision}")
    _settle(chosen.directory)
    seconds = time.monotonic() - began
    return f"{manifest.table(files)}\n{chosen.id} at {revision}: {_size(files)} in {seconds:.1f} s"


def _convert(chosen: argparse.Namespace) -> str:
    if not (chosen.directory / manifest.NAME).is_file():
        if chosen.dtype:
            raise PreloadError(f"there are no weights to store as {chosen.dtype}")
        return _NO_MODEL
    ggufs = list(chosen.directory.rglob("*.gguf"))
    if ggufs:
        os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        dtype = chosen.dtype or "bfloat16"
        with _without_compiler():
            from llm_preload.gguf_file import convert as unpack  # noqa: PLC0415

            unpack(ggufs[0], chosen.directory, dtype)
        _remove(ggufs[0], chosen.directory)
    elif dtype := chosen.dtype:
        from llm_preload.convert import convert  # noqa: PLC0415

        convert(chosen.directory, dtype)
    else:
        return "weights as they were fetched"
    files = manifest.rewrite(chosen.directory)
    _settle(chosen.directory)
    return f"{manifest.table(files)}\nweights stored as {dtype}: {_size(files)}"


def _prove(chosen: argparse.Namespace) -> str:
    if not (chosen.directory / manifest.NAME).is_file():
        return _NO_MODEL
    with _without_compiler():
        from llm_preload.prove import prove  # noqa: PLC0415

        return "loads offline: " + prove(chosen.directory)


def _without_compiler() -> AbstractContextManager[None]:
    """Import and load models as the server does: no image holds torch's compiler."""
    from llm_lean.importing import import_torch  # noqa: PLC0415

    import_torch()
    from llm_lean.compiler import without_compiler  # noqa: PLC0415

    return without_compiler()


def _remove(file: Path, directory: Path) -> None:
    """Remove a file, and the folders below `directory` that held it alone."""
    file.unlink()
    folder = file.parent
    while folder != directory and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _settle(directory: Path) -> None:
    """Give every file the same time and mode: one revision makes one layer."""
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (EPOCH, EPOCH))


def _size(files: list[manifest.File]) -> str:
    return f"{sum(file['size'] for file in files) / 1e6:.0f} MB"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
