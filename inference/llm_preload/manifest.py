"""The list of what a model directory holds: ``manifest.json``, which the server reads at start."""

import json
from pathlib import Path

from llm_hub.digest import sha256

NAME = "manifest.json"


def write(directory: Path, *, model_id: str, requested: str, revision: str) -> int:
    """List every file with its size in bytes and SHA-256; return the bytes they have together.

    Args:
        directory: The model directory.
        model_id: The model.
        requested: The branch, tag or commit that was asked for.
        revision: The commit that it was at that moment.
    """
    files = [
        {
            "path": path.relative_to(directory).as_posix(),
            "size": path.stat().st_size,
            "sha256": sha256(path),
        }
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != NAME
    ]
    content = {"id": model_id, "requested": requested, "revision": revision, "files": files}
    (directory / NAME).write_text(json.dumps(content, indent=2) + "\n")
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def rewrite(directory: Path) -> int:
    """List the files anew after a change; the model and its revision stay."""
    old = json.loads((directory / NAME).read_text())
    names = {"model_id": old["id"], "requested": old["requested"], "revision": old["revision"]}
    return write(directory, **names)
