"""The list of what a model directory holds: ``manifest.json``, which the server reads at start."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_hub.digest import sha256

NAME = "manifest.json"

File = Mapping[str, Any]


def write(directory: Path, *, model_id: str, requested: str, revision: str | None) -> list[File]:
    """List every file with its path, size in bytes and SHA-256; return that list.

    Args:
        directory: The model directory.
        model_id: The model.
        requested: The branch, tag or commit that was asked for.
        revision: The commit that it was at that moment; None for the digest of the files.
    """
    files = _files(directory)
    named = {"id": model_id, "requested": requested, "revision": revision or digest(files)}
    _write(directory, {**named, "files": files})
    return files


def rewrite(directory: Path) -> list[File]:
    """List the files anew after a conversion; the model and its revision stay.

    What was there before and is not any more is kept as ``converted_from``.
    """
    old = json.loads((directory / NAME).read_text())
    files = _files(directory)
    replaced = [file for file in old["files"] if file not in files]
    _write(directory, {**old, "files": files, "converted_from": replaced})
    return files


def digest(files: Sequence[File]) -> str:
    """The SHA-256 of the list of files, as sha256sum prints it of files sorted by path."""
    lines = "".join(f"{file['sha256']}  {file['path']}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def table(files: Sequence[File]) -> str:
    """The list of files, one a line: path, size in bytes, SHA-256."""
    width = max(len(file["path"]) for file in files)
    return "\n".join(f"{f['path']:{width}} {f['size']:>12} {f['sha256']}" for f in files)


def _files(directory: Path) -> list[File]:
    paths = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*")}
    return [
        {"path": name, "size": path.stat().st_size, "sha256": sha256(path)}
        for name, path in sorted(paths.items())
        if path.is_file() and name != NAME
    ]


def _write(directory: Path, content: Mapping[str, Any]) -> None:
    (directory / NAME).write_text(json.dumps(content, indent=2) + "\n")
