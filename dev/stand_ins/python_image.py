"""Makes a base image like ``python:3.13-slim`` out of Debian's own packages.

Used where the container registry cannot be reached. It is the same release of Debian with the same
minor version of Python under the names the real image has (``python``, ``python3``), written as an
OCI layout that a build takes as a named context. Knows Debian and OCI; not who builds on it.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from dev.cluster.progress import say, step
from dev.stand_ins import cache
from dev.stand_ins.packages import PackageError

RECIPE = "1"
REFERENCE = "python:3.13-slim"
RELEASE = "trixie"
PACKAGES = "python3,python3-venv,ca-certificates,netbase,tzdata"
# A fixed time, so that the same packages give the same layer.
EPOCH = "1767225600"
EXCLUDED = ("man/*", "doc/*", "locale/*", "info/*")


def ensure() -> Path:
    """Return the OCI layout of the base image, made now unless the cache has it."""
    layout = cache.stand_ins() / f"python-3.13-slim-r{RECIPE}"
    with cache.locked(layout.name):
        if not layout.exists():
            say(f"stand-in: {REFERENCE} from Debian {RELEASE}'s packages")
            with cache.building(layout) as scratch:
                _make(scratch)
    return layout


def digest(layout: Path) -> str:
    """Return the digest of the layout's only image."""
    index = json.loads((layout / "index.json").read_text())
    return str(index["manifests"][0]["digest"])


def _make(layout: Path) -> None:
    _install_mmdebstrap()
    with step(f"bootstrap Debian {RELEASE} with its Python"):
        layer = layout / "layer.tar"
        _bootstrap(layer)
    with step("write the OCI layout"):
        _write_layout(layout, layer, _python_version(layer))


def _install_mmdebstrap() -> None:
    if shutil.which("mmdebstrap"):
        return
    if not shutil.which("apt-get"):
        raise PackageError(f"a stand-in for {REFERENCE} needs mmdebstrap: install it")
    with step("install mmdebstrap"):
        _run("apt-get", "update", "--quiet")
        _run("apt-get", "install", "--yes", "--no-install-recommends", "mmdebstrap")


def _bootstrap(layer: Path) -> None:
    links = " && ".join(
        f"ln -s /usr/bin/python3 $1/usr/local/bin/{name}"
        for name in ("python", "python3", "python3.13")
    )
    options = [f"--dpkgopt=path-exclude=/usr/share/{path}" for path in EXCLUDED]
    options.append("--dpkgopt=path-include=/usr/share/doc/*/copyright")
    _run(
        *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", *options),
        *(f"--customize-hook={links}", "--customize-hook=rm -rf $1/var/log/* $1/var/cache/*"),
        *(RELEASE, str(layer)),
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "DEBIAN_FRONTEND": "noninteractive"},
    )


def _python_version(layer: Path) -> str:
    with tarfile.open(layer) as archive:
        status = archive.extractfile("./var/lib/dpkg/status")
        text = status.read().decode() if status else ""
    found = re.search(r"(?ms)^Package: python3\.13\n.*?^Version: ([\d.]+)", text)
    if found is None:
        raise PackageError(f"Debian {RELEASE} brought no python3.13")
    return found[1]


def _write_layout(layout: Path, layer: Path, python: str) -> None:
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    with layer.open("rb") as content:
        layer_digest = hashlib.file_digest(content, "sha256").hexdigest()
    size = layer.stat().st_size
    layer.rename(blobs / layer_digest)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": [
                "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
                "LANG=C.UTF-8",
                f"PYTHON_VERSION={python}",
            ],
            "Cmd": ["python3"],
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
        "history": [{"created_by": f"stand-in for {REFERENCE}: Debian {RELEASE} by mmdebstrap"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _blob(blobs, "application/vnd.oci.image.config.v1+json", config),
        "layers": [
            {
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": f"sha256:{layer_digest}",
                "size": size,
            }
        ],
    }
    entry = _blob(blobs, manifest["mediaType"], manifest)
    entry["annotations"] = {"org.opencontainers.image.ref.name": REFERENCE}
    index = {"schemaVersion": 2, "manifests": [entry]}
    (layout / "index.json").write_text(json.dumps(index))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _blob(blobs: Path, media_type: object, content: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(content).encode()
    digest = hashlib.sha256(text).hexdigest()
    (blobs / digest).write_bytes(text)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(text)}


def _run(*command: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PackageError(f"{command[0]} failed:\n{done.stderr.strip()[-2000:]}")
