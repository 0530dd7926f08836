"""Programs built from the pinned Go modules in `dev/tools/`: how they are built, where they lie.

A toolset is built once for all checkouts, into a cache folder named by what it is built from, so a
change of one toolset leaves the programs of the others alone. Knows nothing of how they are run.
"""

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import paths
from .commands import ClusterError
from .progress import say, step

LINKER_FLAGS = "-s -w"
# The Kubernetes programs ask these variables for their version; unset, they say v0.0.0.
VERSION_VARIABLES = (
    "k8s.io/component-base/version.gitVersion",
    "k8s.io/client-go/pkg/version.gitVersion",
)


@dataclass(frozen=True)
class Program:
    """One program: its file name, its Go package, and the module in `dev/tools/` that pins it."""

    name: str
    package: str
    module: str


@dataclass(frozen=True)
class Toolset:
    """Programs that are cached together, in the order in which they are built."""

    programs: tuple[Program, ...]

    def folder(self) -> Path:
        """The folder of the cache that is theirs, whether or not they are built."""
        return paths.cache() / "tools" / digest(self)

    def bin_folder(self) -> Path:
        """The folder that holds the programs."""
        return self.folder() / "bin"

    def path(self, name: str) -> Path:
        """The path of one program."""
        return self.bin_folder() / name

    def build(self, *, modules: Collection[str] | None = None) -> None:
        """Build what is missing, one at a time; an interrupted build goes on here.

        Args:
            modules: whose programs; all when None.

        Raises:
            ClusterError: Go is missing or a program does not build.
        """
        chosen = [p for p in self.programs if modules is None or p.module in modules]
        todo = [p for p in chosen if not self.path(p.name).exists()]
        if not todo:
            return
        check_go()
        say(f"Building {len(todo)} programs into {self.bin_folder()}")
        self.bin_folder().mkdir(parents=True, exist_ok=True)
        for program in todo:
            with step(f"  building {program.name}"), self._lock(program):
                if not self.path(program.name).exists():
                    self._build(program)

    @contextmanager
    def _lock(self, program: Program) -> Iterator[None]:
        """Wait while another checkout builds the same program."""
        with (self.folder() / f"{program.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _build(self, program: Program) -> None:
        flags = LINKER_FLAGS
        if program.module == "kubernetes":
            flags += "".join(f" -X {name}={kubernetes_version()}" for name in VERSION_VARIABLES)
        fresh = self.bin_folder() / f".{program.name}.{os.getpid()}"
        command = ["go", "build", "-trimpath", "-buildvcs=false", "-ldflags", flags]
        # Without cgo the programs are static: the same file runs on the host and in a bare image.
        done = subprocess.run(
            [*command, "-o", str(fresh), program.package],
            cwd=paths.TOOL_MODULES / program.module,
            env={**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": "-mod=readonly"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            fresh.unlink(missing_ok=True)
            raise ClusterError(f"{program.name} does not build:\n{done.stderr.strip()}")
        fresh.replace(self.path(program.name))


@functools.cache
def digest(toolset: Toolset) -> str:
    """Twelve hex digits that change when anything the programs are built from changes."""
    recipe = (toolset.programs, LINKER_FLAGS, VERSION_VARIABLES)
    content = hashlib.sha256(repr(recipe).encode())
    for module in sorted({program.module for program in toolset.programs}):
        folder = paths.TOOL_MODULES / module
        for file in sorted([folder / "go.mod", folder / "go.sum", *folder.glob("**/*.go")]):
            content.update(file.read_bytes())
    return content.hexdigest()[:12]


def check_go() -> None:
    """Building needs Go.

    Raises:
        ClusterError: it is not on PATH.
    """
    if shutil.which("go") is None:
        raise ClusterError("Go is not installed: the cluster's programs are built from source")


def kubernetes_version() -> str:
    """The Kubernetes version that `dev/tools/kubernetes/go.mod` pins, such as v1.37.2."""
    pins = (paths.TOOL_MODULES / "kubernetes" / "go.mod").read_text()
    found = re.search(r"^\s*(?:require )?k8s\.io/kubernetes (v\S+)", pins, re.MULTILINE)
    if found is None:
        raise ClusterError("dev/tools/kubernetes/go.mod does not require k8s.io/kubernetes")
    return found[1]
