"""Model directories seen as the hub sees repositories: a revision, and files with hashes.

Knows nothing of HTTP. The revision is computed from the content, so it changes exactly when a file
does, and it looks like the hub's: 40 hex digits. ``main`` names the only one there is.
"""

import dataclasses
import hashlib
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class File:
    """One file of a repository; `name` is relative with forward slashes, `size` in bytes."""

    name: str
    path: Path
    size: int
    sha256: str

    @property
    def is_large(self) -> bool:
        """Whether the hub would keep it in large-file storage."""
        return self.name.endswith((".safetensors", ".bin", ".gguf"))


@dataclasses.dataclass(frozen=True)
class Repository:
    """A model directory under a hub id; `token` is wanted from who asks, when set."""

    id: str
    revision: str
    files: dict[str, File]
    token: str | None = None

    def has_revision(self, revision: str) -> bool:
        """Whether `revision` names what this repository holds."""
        return revision in ("main", self.revision)


def read(model_id: str, directory: Path, token: str | None = None) -> Repository:
    """Hash every file of a model directory; files whose names begin with a dot do not count."""
    files = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in Path(name).parts):
            files[name] = File(name, path, path.stat().st_size, _sha256(path))
    listing = "".join(f"{file.sha256} {file.name}\n" for file in files.values())
    revision = hashlib.sha256(listing.encode()).hexdigest()[:40]
    return Repository(model_id, revision, files, token)


def read_all(root: Path, tokens: dict[str, str] | None = None) -> dict[str, Repository]:
    """Read every ``<org>/<name>`` below `root`; `tokens` maps gated ids to the token they want."""
    found = {}
    for directory in sorted(root.glob("[!.]*/[!.]*")):
        if directory.is_dir():
            model_id = directory.relative_to(root).as_posix()
            found[model_id] = read(model_id, directory, (tokens or {}).get(model_id))
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
