"""Makes torch's CPU-only wheel out of the CUDA wheel that the default package index has.

Used where PyTorch's CPU index cannot be reached. CPU kernels, MKL and oneDNN are the original's,
byte for byte. What goes: every CUDA library but the small real libcudart and libcupti, which
libtorch_cpu.so itself links. libtorch_python.so still wants symbols of libraries that are gone:
stub libraries define those. torch.distributed says that it is not available, because its Python
half expects NCCL. Knows torch's wheel and its layout; does not know who installs the result.
"""

import base64
import csv
import dataclasses
import hashlib
import io
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from dev.cluster.progress import say, step
from dev.stand_ins import cache, packages, stub_library

RECIPE = "1"
LOCK = packages.REQUIREMENTS / "inference-gpu.txt"

DROPPED = ("torch/lib/libtorch_cuda*.so", "torch/lib/libtorch_nvshmem.so", "*/libcaffe2_nvrtc.so")
STUBS = {
    # soname: the prefix of the symbols it has to define (none: all that dropped libraries define)
    "libtorch_cuda.so": "",
    "libcudnn.so.9": "cudnn",
    "libcufile.so.0": "cuFile",
}
KEPT_CUDA = {
    "nvidia-cuda-runtime": "libcudart.so.*",
    "nvidia-cuda-cupti": "libcupti.so.*",
}
DROPPED_NEEDS = ("nvidia-", "cuda-", "triton")
HIDDEN = ("_c10d_init", "_rpc_init", "_dist_autograd_init", "_faulty_agent_init")
AFTER_IMPORT = """\
{indent}_C._has_cuda = False  # this build has no CUDA
{indent}for _hidden in {hidden}:
{indent}    if hasattr(_C, _hidden):
{indent}        delattr(_C, _hidden)
"""


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A wheel for one interpreter, such as ``3.13``."""

    python: str
    version: str

    @property
    def tag(self) -> str:
        """The interpreter's tag, such as ``cp313``."""
        return "cp" + self.python.replace(".", "")

    @property
    def path(self) -> Path:
        """Where the finished wheel lies in the cache."""
        name = f"torch-{self.version}+cpu-{self.tag}-{self.tag}-manylinux_2_28_x86_64.whl"
        return cache.stand_ins() / f"torch-{self.version}-{self.tag}-r{RECIPE}" / name


def ensure(python: str) -> Path:
    """Return the CPU wheel for `python`, made now unless the cache has it."""
    wheel = Wheel(python, packages.version(LOCK, "torch"))
    with cache.locked(wheel.path.parent.name):
        if wheel.path.exists():
            return wheel.path
        say(f"stand-in: CPU build of torch {wheel.version} for Python {python}")
        with (
            tempfile.TemporaryDirectory(prefix="torch-", dir=cache.stand_ins()) as scratch,
            cache.building(wheel.path.parent) as finished,
        ):
            _make(wheel, Path(scratch), finished / wheel.path.name)
    return wheel.path


def finished() -> list[Path]:
    """Return every wheel that the cache has for the locked version of torch."""
    version = packages.version(LOCK, "torch")
    return sorted(cache.stand_ins().glob(f"torch-{version}-*-r{RECIPE}/*.whl"))


def _make(wheel: Wheel, scratch: Path, output: Path) -> None:
    with step("fetch the default build of torch"):
        original = packages.download(packages.pin(LOCK, "torch"), scratch, python=wheel.python)
    with step("fetch the CUDA runtime and profiler libraries that libtorch_cpu.so links"):
        kept = [_kept_cuda(name, scratch) for name in KEPT_CUDA]
    with step("write stub libraries for the symbols that are still wanted"):
        stubs = _stubs(original, scratch)
    with step("write the CPU wheel"):
        _write(original, [*kept, *stubs], wheel, output)


def _kept_cuda(package: str, scratch: Path) -> Path:
    wheel = packages.download(packages.pin(LOCK, package), scratch)
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if fnmatch(n, "*/" + KEPT_CUDA[package]))
        return _extract(archive, name, scratch)


def _stubs(original: Path, scratch: Path) -> list[Path]:
    """Compile the stub libraries from what the kept libraries leave undefined."""
    dropped: dict[str, stub_library.Symbol] = {}
    wanted: dict[str, str] = {}
    with zipfile.ZipFile(original) as archive:
        for name in archive.namelist():
            if not fnmatch(name, "torch/*.so*"):
                continue
            library = _extract(archive, name, scratch)
            if _dropped(name):
                dropped |= stub_library.defined(library)
            else:
                wanted |= stub_library.undefined(library)
            library.unlink()
    folder = scratch / "stubs"
    folder.mkdir()
    for soname, prefix in STUBS.items():
        symbols = [
            stub_library.Symbol(name) if prefix else dropped[name]
            for name in wanted
            if (name.startswith(prefix) if prefix else name in dropped)
        ]
        version = next((wanted[symbol.name] for symbol in symbols), "")
        stub_library.write(folder / soname, symbols, version=version)
    return [folder / soname for soname in STUBS]


def _extract(archive: zipfile.ZipFile, name: str, folder: Path) -> Path:
    path = folder / Path(name).name
    with archive.open(name) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    return path


def _dropped(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in DROPPED)


def _write(original: Path, libraries: list[Path], wheel: Wheel, output: Path) -> None:
    """Copy the wheel entry by entry, uncompressed: it is read at once and stays local."""
    old_info, new_info = (f"torch-{v}.dist-info/" for v in (wheel.version, wheel.version + "+cpu"))
    with (
        zipfile.ZipFile(original) as source,
        zipfile.ZipFile(output, "w", zipfile.ZIP_STORED) as target,
    ):
        records = _records(source, old_info)
        rows: list[tuple[str, str, str]] = []
        for entry in source.infolist():
            name = entry.filename.replace(old_info, new_info)
            if name.endswith("/") or _dropped(name) or name == new_info + "RECORD":
                continue
            info = _entry(name, entry)
            if (edit := _edits(new_info).get(name)) is None:
                with source.open(entry) as reading, target.open(info, "w") as writing:
                    shutil.copyfileobj(reading, writing, 1 << 20)
                rows.append((name, *records[entry.filename]))
            else:
                content = edit(source.read(entry).decode()).encode()
                target.writestr(info, content)
                rows.append(_record(name, content))
        like = source.getinfo("torch/lib/libc10.so")
        for library in libraries:
            content = library.read_bytes()
            target.writestr(_entry(f"torch/lib/{library.name}", like), content)
            rows.append(_record(f"torch/lib/{library.name}", content))
        rows.append((new_info + "RECORD", "", ""))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        target.writestr(_entry(new_info + "RECORD", like), text.getvalue())


def _entry(name: str, like: zipfile.ZipInfo) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, like.date_time)
    info.external_attr = like.external_attr
    info.file_size = like.file_size
    return info


def _records(source: zipfile.ZipFile, info: str) -> dict[str, tuple[str, str]]:
    rows = csv.reader(source.read(info + "RECORD").decode().splitlines())
    return {name: (digest, size) for name, digest, size in rows}


def _record(name: str, content: bytes) -> tuple[str, str, str]:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return name, f"sha256={digest}", str(len(content))


def _edits(info: str) -> dict[str, Callable[[str], str]]:
    return {
        "torch/__init__.py": _hide_cuda,
        "torch/version.py": _name_cpu,
        info + "METADATA": _drop_needs,
    }


def _hide_cuda(text: str) -> str:
    def with_edit(found: re.Match[str]) -> str:
        return found[0] + AFTER_IMPORT.format(indent=found["indent"], hidden=HIDDEN)

    pattern = r"^(?P<indent> +)from torch\._C import \*.*\n"
    edited, count = re.subn(pattern, with_edit, text, flags=re.MULTILINE)
    return _changed("torch/__init__.py", edited, count)


def _name_cpu(text: str) -> str:
    text, versions = re.subn(r"(?m)^(__version__ = '[^'+]*)[^']*'", r"\1+cpu'", text)
    text, cudas = re.subn(r"(?m)^(cuda: .* = ).*", r"\1None", text)
    return _changed("torch/version.py", text, min(versions, cudas))


def _drop_needs(text: str) -> str:
    needs = "|".join(map(re.escape, DROPPED_NEEDS))
    text, versions = re.subn(r"(?m)^(Version: .*)$", r"\1+cpu", text, count=1)
    text, dropped = re.subn(rf"(?m)^Requires-Dist: (?:{needs}).*\n", "", text)
    return _changed("METADATA", text, min(versions, dropped))


def _changed(name: str, text: str, count: int) -> str:
    """Return `text`, or fail when a new release of torch left nothing to change in `name`."""
    if not count:
        raise packages.PackageError(f"torch's {name} is not what this recipe knows; mend it")
    return text
