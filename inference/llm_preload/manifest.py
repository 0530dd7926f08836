"""The list of what a model directory holds: ``manifest.json``, which the server reads at start."""

import hashlib
import json
from pathlib import Path

NAME = "manifest.json"


def write(directory: Path, *, model_id: str, revision: str) -> int:
    """List every file with its size in bytes and SHA-256; return the bytes they have together."""
    files = [
        {
            "path": path.relative_to(directory).as_posix(),
            "size": path.stat().st_size,
            "sha256": sha256(path),
        }
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != NAME
    ]
    content = {"id": model_id, "revision": revision, "files": files}
    (directory / NAME).write_text(json.dumps(content, indent=2) + "\n")
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def rewrite(directory: Path) -> int:
    """List the files anew after a change; the model and its revision stay."""
    old = json.loads((directory / NAME).read_text())
    return write(directory, model_id=old["id"], revision=old["revision"])


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
