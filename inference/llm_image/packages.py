"""Python packages, reduced to what runs.

Headers, tests and the sources that transformers generates its models from go; symbols for
debuggers go from every library. Bytecode is written ahead for what a start imports: the rest of
torch, and transformers' hundreds of model families, are compiled when they are asked for, and
would double the image. The metadata of packages stays, so that scanners see what is there.
Knows the layout of site-packages; not which model is served.
"""

import compileall
import dataclasses
import py_compile
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from llm_image import ImageError, elf, families


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What of an image's packages goes, in paths and patterns relative to site-packages.

    Attributes:
        left_out: Files and folders that go. Each pattern must match: a release that has moved
            something is told of.
        not_compiled: Folders below which modules are compiled when first imported, if ever; those
            in the folder itself are compiled.
        compiled_there: Folders below these that are compiled all the same.
    """

    left_out: tuple[str, ...]
    not_compiled: tuple[str, ...]
    compiled_there: tuple[str, ...] = ()

    def compiles(self, path: str) -> bool:
        """Whether the source at `path` is compiled ahead."""
        folder = path.rpartition("/")[0]
        if re.search(r"(^|/)tests?(/|$)", folder):
            return False
        return _below(folder, self.compiled_there) or not any(
            folder.startswith(seldom + "/") for seldom in self.not_compiled
        )


RECIPES = {
    "inference": Recipe(
        left_out=(
            # What compiles and links extensions, and what reads types.
            "torch/include",
            "torch/bin/protoc*",
            *("numpy/_core/include", "numpy/**/*.a"),
            "torch/**/*.pyi",
            # torch's compiler and exporters: the server's decoders are compiled before.
            "torch/_dynamo/[a-z]*",
            "torch/_inductor",
            "torch/_vendor/quack",
            "torch/onnx",
            "torch/utils/benchmark",
            "networkx*",
            # What builds packages, and the hub's command line.
            *("setuptools*", "_distutils_hack", "distutils-precedence.pth"),
            *("typer*", "rich*", "pygments*", "markdown_it*", "mdurl*", "shellingham*"),
            # What transformers' models are generated from.
            "transformers/models/*/modular_*.py",
            *("numpy/*/tests", "sympy/*/tests"),
            # What arithmetic with the sizes of tensors has no use for.
            *("sympy/physics", "sympy/stats"),
        ),
        not_compiled=("torch/distributed", "torch/testing", "transformers/models"),
        compiled_there=(
            # What `import torch` brings where it can be distributed, which the CUDA build can.
            "torch/distributed/_pycute",
            "torch/distributed/algorithms",
            "torch/distributed/autograd",
            "torch/distributed/rpc",
            "transformers/models/auto",
            "transformers/models/bert",
            "transformers/models/llama",
        ),
    ),
    "operator": Recipe(
        left_out=(),
        not_compiled=(
            "kubernetes/aio/client",
            "kubernetes/client",
        ),
    ),
}
"""By the image they are for."""


def reduce(site: Path, recipe: Recipe) -> Iterator[str]:
    """Remove files and symbols from `site`, a site-packages, and compile; yield what that gave.

    Raises:
        ImageError: A file that should go is not there: the packages have changed.
    """
    for pattern in recipe.left_out:
        found = sorted(site.glob(pattern))
        if not found:
            raise ImageError(f"there is no {pattern} in {site}: mend llm_image.packages")
        saved = sum(map(remove, found))
        yield f"{pattern}: {saved / 1e6:.1f} MB"
    if (models := site / "transformers" / "models").exists():
        saved = sum(map(remove, families.surplus(models)))
        yield f"model families that do not read text: {saved / 1e6:.1f} MB"
    (site.parents[2] / ".lock").unlink(missing_ok=True)  # uv's, writable by all
    # NVIDIA's have been stripped by it.
    others = (p for p in elf.libraries(site) if not p.is_relative_to(site / "nvidia"))
    saved = sum(map(elf.strip, others))
    yield f"symbols of libraries: {saved / 1e6:.1f} MB"
    yield f"compiled {compile_bytecode(site, recipe)} modules"


def remove(path: Path) -> int:
    """Remove a file, a link or a folder; return the bytes of the files that are gone."""
    if path.is_dir() and not path.is_symlink():
        saved = sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
        shutil.rmtree(path)
        return saved
    saved = path.lstat().st_size
    path.unlink()
    return saved


def compile_bytecode(site: Path, recipe: Recipe) -> int:
    """Compile what a start may import; return how many modules that is.

    Bytecode is never compared with its source, so file times do not matter, and it names the
    source by the path it has now.
    """
    count = 0
    for source in sorted(site.rglob("*.py")):
        if recipe.compiles(source.relative_to(site).as_posix()) and compileall.compile_file(
            source,
            quiet=2,
            force=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        ):
            count += 1
    return count


def _below(path: str, folders: tuple[str, ...]) -> bool:
    return any(f"{path}/".startswith(f"{folder}/") for folder in folders)
