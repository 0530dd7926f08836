"""Debian, reduced to what Python runs on.

A base image can install packages, log users in and edit files; a server does none of it, and most
of what scanners report is there. What stays: the packages that Python and its modules link, a few
that hold data, and a plain `sh` for commands that are wrapped in one. The package database stays
and lists just what is left. Knows dpkg's database and the standard library; not who serves what.
"""

import compileall
import py_compile
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from llm_image import ImageError
from llm_image.packages import remove

_KEPT = (
    "base-files",
    "base-passwd",
    "ca-certificates",
    "dash",
    "gcc-*-base",
    "libc-bin",
    "libc6",
    "libgcc-s1",
    "libstdc++6",  # torch links it, Python does not
    "media-types",
    "netbase",
    "openssl",  # owns the folder that Python looks for certificates in
    "tzdata",
)
_LEFT_OVER = (
    "root/.[!.]*",
    "usr/lib/*/gconv",  # iconv's: Python has codecs of its own
    "usr/local/bin/idle*",
    "usr/local/bin/pip*",
    "usr/local/bin/pydoc*",
    "usr/local/bin/python*-config",
    "usr/local/include",
    "usr/local/lib/*.a",
    "usr/local/share/man",
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/python-wheels",
    "var/cache/*",
    "var/lib/apt",
    "var/log/*",
)
# Of the standard library: other programs, and what builds or installs packages.
_UNUSED_MODULES = (
    "config-*",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "test",
    "tkinter",
    "turtledemo",
)
# /tmp is for all, and the others are the kernel's.
_MOUNTED = ("dev", "proc", "sys", "tmp")
_SPECIAL_BITS = 0o6000
_WRITABLE_BY_ALL = 0o002


class Database:
    """dpkg's: which packages are there, and which files are whose."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = root / "var" / "lib" / "dpkg"
        status = self._folder / "status"
        if not status.exists():
            raise ImageError(f"{root} is no Debian: there is no {status}")
        self._stanzas = dict(map(_with_name, status.read_text().strip().split("\n\n")))

    @property
    def names(self) -> set[str]:
        """The installed packages."""
        return set(self._stanzas)

    def files(self, package: str) -> list[Path]:
        """What `package` installed, folders among it; the paths have no links in their folders."""
        found = []
        for line in self._list(package).read_text().splitlines():
            path = self._root / line.lstrip("/")
            if path != self._root:
                found.append(path.parent.resolve() / path.name)
        return found

    def owners(self, paths: Iterable[Path]) -> set[str]:
        """The packages that installed any of `paths`."""
        wanted = {path.parent.resolve() / path.name for path in paths}
        return {name for name in self._stanzas if wanted & set(self.files(name))}

    def forget(self, packages: Iterable[str]) -> None:
        """Take packages out, as if they had been purged."""
        for name in packages:
            stem = self._list(name).stem
            for path in self._folder.glob("info/*"):
                if path.stem == stem:
                    path.unlink()
            del self._stanzas[name]
        text = "".join(stanza + "\n\n" for stanza in self._stanzas.values())
        (self._folder / "status").write_text(text)
        for path in self._folder.glob("*-old"):
            path.unlink()

    def _list(self, package: str) -> Path:
        (found,) = (
            path
            for path in self._folder.glob(f"info/{package}*.list")
            if re.fullmatch(rf"{re.escape(package)}(:\w+)?", path.stem)
        )
        return found


def reduce(root: Path) -> Iterator[str]:
    """Reduce the system in `root`, which must be the one this runs in; yield what that saved.

    Raises:
        ImageError: It is no Debian.
    """
    database = Database(root)
    kept = kept_packages(database)
    dropped = sorted(database.names - kept)
    yield f"{len(dropped)} packages: {remove_packages(database, dropped) / 1e6:.0f} MB"
    found = [path for pattern in _LEFT_OVER for path in sorted(root.glob(pattern))]
    found += _documents(root)
    yield f"documents and caches: {sum(map(remove, found)) / 1e6:.0f} MB"
    library = Path(sysconfig.get_path("stdlib"))
    found = [path for pattern in _UNUSED_MODULES for path in sorted(library.glob(pattern))]
    found += sorted(Path(sysconfig.get_path("purelib")).glob("pip*"))
    yield f"modules of Python: {sum(map(remove, found)) / 1e6:.0f} MB"
    _compile(library)
    for path in protect(root):
        yield f"{path}: less permission"


def kept_packages(database: Database) -> set[str]:
    """The packages that stay: those of `_KEPT`, Python's own, and those of what Python links."""
    named = {name for name in database.names if any(fnmatch(name, kept) for kept in _KEPT)}
    library = Path(sysconfig.get_path("stdlib"))
    interpreter = list(_chain(Path(sys.executable)))
    binaries = [interpreter[-1], *sorted(library.glob("lib-dynload/*.so"))]
    modules = [library / "os.py", *library.glob("*/__init__.py")]
    modules = [path for path in modules if path.parent.name not in _UNUSED_MODULES]
    linked = {path for binary in binaries for path in _linked(binary)}
    return named | database.owners([*interpreter, *binaries, *modules, *linked])


def remove_packages(database: Database, packages: Iterable[str]) -> int:
    """Remove the files of `packages` that no other has; return their bytes."""
    dropped = set(packages)
    others = {path for name in database.names - dropped for path in database.files(name)}
    files = {path for name in dropped for path in database.files(name)} - others
    saved = 0
    # Deepest first: a folder is empty once what was in it is gone.
    for path in sorted(files, reverse=True):
        if path.is_symlink() or path.is_file():
            saved += remove(path)
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    database.forget(sorted(dropped))
    return saved


def protect(root: Path) -> Iterator[Path]:
    """Let no file run as its owner, and nothing be written by all but /tmp; yield what changed."""
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or path.relative_to(root).parts[0] in _MOUNTED:
            continue
        mode = path.lstat().st_mode & 0o7777
        less = mode & ~_SPECIAL_BITS & ~_WRITABLE_BY_ALL
        if path.is_dir():
            less = mode & ~_WRITABLE_BY_ALL if mode & _WRITABLE_BY_ALL else mode
        if less != mode:
            path.chmod(less)
            yield path


def _documents(root: Path) -> list[Path]:
    """Documents of packages, less their licences."""
    found = (root / "usr" / "share" / "doc").rglob("*")
    return sorted(p for p in found if (p.is_symlink() or p.is_file()) and p.name != "copyright")


def _chain(path: Path) -> Iterator[Path]:
    """A link, what it points to, and so on: each may be another package's."""
    yield path
    while path.is_symlink():
        path = path.parent / path.readlink()
        yield path


def _linked(binary: Path) -> list[Path]:
    done = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=False)
    found = re.findall(r"(?:=> )?(/\S+) \(0x", done.stdout)
    return [path for name in found for path in _chain(Path(name))]


def _compile(library: Path) -> None:
    """Compile the standard library, which starts faster so."""
    compileall.compile_dir(
        library,
        quiet=2,
        force=True,
        rx=re.compile(r"/(site|dist)-packages/"),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


def _with_name(stanza: str) -> tuple[str, str]:
    found = re.search(r"(?m)^Package: (\S+)$", stanza)
    if found is None:
        raise ImageError("dpkg's database holds a package without a name")
    return found[1], stanza
