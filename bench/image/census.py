"""What a file system holds, counted: `python census.py ROOT PATH` prints it as JSON.

Runs in a step of a build, with an image's file system below ROOT, so it is one file and needs
nothing but Python. Knows files, Debian's list of packages and Python's; does not know which image
it looks at, and takes nothing from it but names, sizes and modes. Sees what a container sees: what
a lower layer holds and an upper one removes is not counted.
"""

import json
import os
import re
import stat
import sys
from pathlib import Path

COMPILERS = (
    *("as", "c++", "cc", "clang", "clang++", "cmake", "cpp", "g++", "gcc", "go", "gold", "ld"),
    *("make", "nvcc", "rustc", "zig"),
)
SETTING_ID = stat.S_ISUID | stat.S_ISGID
MODEL = "model"
PYTHON_PACKAGES = ("site-packages", "dist-packages")
_LIBRARY = re.compile(r"\.so(\.\d+)*$")
_LINKS = 16


def census(root: Path, path: list[str]) -> dict[str, object]:
    """Count what lies below `root`, on its own file system alone.

    Args:
        root: What is `/` in a container.
        path: Folders in which a shell in the container looks for programs.

    Returns:
        `bytes` and `files` of everything and `model_bytes` of /model; `os_packages` and
        `python_packages`; shared `libraries` that are in no package of Python; names of `programs`
        on the path and of `compilers` among them; the paths that are `setuid` or setgid. A file
        with several names is counted once, by one of them.
    """
    seen: set[tuple[int, int]] = set()
    counted = dict.fromkeys(("bytes", "files", "model_bytes", "python_packages", "libraries"), 0)
    setting_id = []
    device = root.stat().st_dev
    for folder, folders, files in os.walk(root):
        at = Path(folder)
        inside = at.relative_to(root).parts
        folders[:] = [name for name in folders if not _leads_away(at / name, device)]
        counted["python_packages"] += sum(name.endswith(".dist-info") for name in folders)
        for name in files:
            about = (at / name).lstat()
            if not stat.S_ISREG(about.st_mode) or (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            counted["files"] += 1
            counted["bytes"] += about.st_size
            if inside[:1] == (MODEL,):
                counted["model_bytes"] += about.st_size
            if _LIBRARY.search(name) and not set(inside) & set(PYTHON_PACKAGES):
                counted["libraries"] += 1
            if about.st_mode & SETTING_ID:
                setting_id.append("/" + "/".join((*inside, name)))
    programs = {name for folder in path for name in _programs(root, folder)}
    return {
        **counted,
        "os_packages": os_packages(root),
        "programs": len(programs),
        "compilers": sorted(programs & set(COMPILERS)),
        "setuid": sorted(setting_id),
    }


def os_packages(root: Path) -> int:
    """How many packages Debian's list says are installed, whole or one file a package."""
    status = root / "var/lib/dpkg/status"
    lines = status.read_text("utf-8", "replace").splitlines() if status.exists() else []
    installed = sum(line == "Status: install ok installed" for line in lines)
    single = status.with_name("status.d").glob("*")
    return installed + sum(file.suffix != ".md5sums" for file in single)


def _programs(root: Path, folder: str) -> set[str]:
    at = _followed(root, root / folder.lstrip("/"))
    return {entry.name for entry in at.iterdir() if _runs(root, entry)} if at.is_dir() else set()


def _runs(root: Path, entry: Path) -> bool:
    entry = _followed(root, entry)
    if entry.is_symlink() or not entry.exists():
        return False  # a link to nothing, or in a circle
    mode = entry.lstat().st_mode
    return stat.S_ISREG(mode) and bool(mode & 0o111)


def _followed(root: Path, entry: Path) -> Path:
    """What a link leads to when `root` is `/`."""
    for _ in range(_LINKS):
        if not entry.is_symlink():
            break
        to = entry.readlink()
        entry = root / to.relative_to("/") if to.is_absolute() else entry.parent / to
    return entry


def _leads_away(folder: Path, device: int) -> bool:
    """Whether a folder is another file system, as /proc is, or a link, which is not followed."""
    return folder.is_symlink() or folder.lstat().st_dev != device


if __name__ == "__main__":
    print(json.dumps(census(Path(sys.argv[1]), sys.argv[2].split(":"))))
