"""An environment divided into folders, so that each becomes a layer and all are pulled at once.

A node fetches the layers of an image side by side but each as one stream, and unpacks them in
turn: gigabytes in one layer come more slowly than in four. What changes together stays together.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

# Layer → the folder of site-packages that goes there; `rest` takes what nobody names.
_LAYERS = {"cuda": "nvidia", "torch": "torch"}
_LARGE = ("torch/lib/libtorch_cuda.so", "nvidia/*/lib/libcublasLt.so*")
_LARGE_BYTES = 100_000_000


def divide(environment: Path, target: Path) -> Iterator[str]:
    """Move `environment` below `target`/<layer>, at the path it has; yield the layers' sizes.

    The folders are `large` (the largest libraries), `cuda`, `torch` and `rest`; one that nothing
    goes to is empty, for a build wants to copy it.
    """
    (site,) = environment.glob("lib/python3*/site-packages")
    for layer in ("large", *_LAYERS):
        (target / layer).mkdir(parents=True, exist_ok=True)
    for path in sorted(file for pattern in _LARGE for file in site.glob(pattern)):
        if path.stat().st_size >= _LARGE_BYTES:
            _move(path, target / "large")
    for layer, name in _LAYERS.items():
        if (site / name).exists():
            _move(site / name, target / layer)
    _move(environment, target / "rest")
    for folder in sorted(target.iterdir()):
        files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        yield f"layer {folder.name}: {sum(path.stat().st_size for path in files) / 1e6:.0f} MB"


def _move(path: Path, layer: Path) -> None:
    goal = layer / path.relative_to("/")
    goal.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, goal)
