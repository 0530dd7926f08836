"""Where stand-ins are kept, and how one comes to be there whole or not at all.

Knows paths, recipe versions and atomic replacement; does not know what a stand-in holds.
"""

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dev.cluster import paths


def stand_ins() -> Path:
    """Return the folder of finished stand-ins."""
    return paths.cache() / "stand-ins"


def models() -> Path:
    """Return the folder of model directories, laid out as ``<org>/<name>``."""
    return paths.cache() / "models"


@contextlib.contextmanager
def building(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` only if the block succeeds.

    The folder lies beside `target`, so that the final rename stays on one file system.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    scratch.chmod(0o755)
    try:
        yield scratch
        if target.exists():
            shutil.rmtree(target)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the machine-wide lock `name`: two checkouts never make one stand-in twice."""
    folder = stand_ins()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name.replace('/', '--')}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
