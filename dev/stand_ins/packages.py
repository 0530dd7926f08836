"""Fetches packages exactly as the project's lock files pin them.

Knows lock files and pip; which index is asked is the machine's own pip configuration.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
REQUIREMENTS = CHECKOUT / "requirements"


class PackageError(Exception):
    """A package could not be fetched; the message says which and why."""


def pin(lock: Path, name: str) -> str:
    """Return `name`'s block of a lock file: ``name==version`` and its hashes."""
    found = re.search(
        rf"^{re.escape(name)}==.*(?:\n    --hash=\S+(?: \\)?)+", lock.read_text(), re.MULTILINE
    )
    if found is None:
        raise PackageError(f"{lock.name} pins no {name}; `make lock` renews the locks")
    return found[0]


def version(lock: Path, name: str) -> str:
    """Return the version that a lock file pins."""
    return re.split(r"==|[ ;\\]", pin(lock, name))[1]


def download(requirement: str, folder: Path, *, python: str | None = None) -> Path:
    """Fetch the one wheel that `requirement` (a pin with hashes) names, and return its path.

    `python` is a version such as ``3.13`` when the wheel is not for the running interpreter.
    """
    target = ["--python-version", python, "--platform", "manylinux_2_28_x86_64"] if python else []
    before = set(folder.glob("*.whl"))
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as lines:
        lines.write(requirement + "\n")
        lines.flush()
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"),
            *("--only-binary=:all:", "--require-hashes", *target),
            *("--dest", str(folder), "--requirement", lines.name),
        ]
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=False
        )
    if done.returncode:
        name = requirement.partition(" ")[0]
        raise PackageError(f"cannot fetch {name}:\n{done.stderr.strip()}")
    return (set(folder.glob("*.whl")) - before).pop()


def environment() -> dict[str, str]:
    """Return the environment for pip and what it installs: the machine's own, and quiet."""
    return {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "TQDM_DISABLE": "1"}
