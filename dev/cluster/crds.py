"""Other projects' CustomResourceDefinitions, put into the cluster without the projects themselves.

They come out of the projects' Go modules, which lie in the module cache and are checked against the
hashes pinned here. Enough to test what the operator creates; nothing reconciles the objects.
"""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import paths, toolset
from .commands import ClusterError, run
from .kubectl import apply, kubectl
from .progress import step


@dataclass(frozen=True)
class Source:
    """Where some CRDs come from.

    Attributes:
        module: the Go module, with its version.
        checksum: what go.sum would say of it.
        folder: where in the module the files lie.
        files: those that are wanted.
        names: the CRDs that they define.
    """

    module: str
    checksum: str
    folder: str
    files: tuple[str, ...]
    names: tuple[str, ...]


SOURCES = {
    "keda": Source(
        module="github.com/kedacore/keda/v2@v2.21.0",
        checksum="h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps=",
        folder="config/crd/bases",
        files=("keda.sh_scaledobjects.yaml",),
        names=("scaledobjects.keda.sh",),
    ),
    "prometheus": Source(
        module="github.com/prometheus-operator/prometheus-operator@v0.85.0",
        checksum="h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
        folder="example/prometheus-operator-crd",
        files=(
            "monitoring.coreos.com_podmonitors.yaml",
            "monitoring.coreos.com_servicemonitors.yaml",
        ),
        names=("podmonitors.monitoring.coreos.com", "servicemonitors.monitoring.coreos.com"),
    ),
}


def fetch(name: str) -> list[Path]:
    """Have the files of a source in the cache.

    Args:
        name: a key of `SOURCES`.

    Raises:
        ClusterError: the module cannot be had, or is not the one that was pinned.
    """
    source = SOURCES[name]
    version = source.module.rpartition("@")[2]
    folder = paths.cache() / "crds" / f"{name}-{version}"
    files = [folder / file for file in source.files]
    if not all(file.exists() for file in files):
        with step(f"Fetching {source.module}"):
            _copy(source, folder)
    return files


def switch(name: str, *, on: bool) -> None:
    """Put the CRDs of a source into the cluster, or remove them with every object of theirs.

    Returns when the cluster serves them, or no more.

    Raises:
        ClusterError: they cannot be had, or the cluster does not answer.
    """
    if not on:
        kubectl("delete", "--ignore-not-found", *_references(name))
        return
    for file in fetch(name):
        apply(file.read_text())
    kubectl("wait", "--for=condition=Established", *_references(name), "--timeout=30s")


def _references(name: str) -> list[str]:
    return [f"customresourcedefinition/{crd}" for crd in SOURCES[name].names]


def _copy(source: Source, folder: Path) -> None:
    toolset.check_go()
    # The hash pinned here stands in for a go.sum, so no other authority need be reached.
    environment = {**os.environ, "GOFLAGS": "", "GOWORK": "off", "GONOSUMDB": "*"}
    with tempfile.TemporaryDirectory() as nowhere:
        answer = run(
            ["go", "mod", "download", "-json", source.module],
            env=environment,
            cwd=Path(nowhere),  # outside of any Go module
            timeout=600,
        )
    got = json.loads(answer)
    if got["Sum"] != source.checksum:
        raise ClusterError(f"{source.module} has the hash {got['Sum']}, not {source.checksum}")
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.files:
        fresh = folder / f".{file}.{os.getpid()}"
        shutil.copyfile(Path(got["Dir"], source.folder, file), fresh)
        fresh.replace(folder / file)
