"""Images made of files at hand: pause, the addons. No build, no registry.

Writes an OCI image layout of one layer and imports it into containerd, where the kubelet and
BuildKit find it. Knows nothing of Dockerfiles: those are BuildKit's.
"""

import hashlib
import io
import json
import platform
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import paths, tools
from .commands import run

NAMESPACE = "k8s.io"  # where the kubelet looks
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
OCI = "application/vnd.oci.image"

Json = dict[str, Any]


def ctr(*arguments: str | Path, timeout: float = 120) -> str:
    """Run containerd's client in the kubelet's namespace."""
    address = str(paths.CONTAINERD_SOCKET)
    return run([tools.path("ctr"), "-a", address, "-n", NAMESPACE, *arguments], timeout=timeout)


def exists(name: str) -> bool:
    """Whether containerd holds an image of this name."""
    return name in ctr("images", "list", "--quiet").split()


def useless(listing: str, *, keep: str) -> list[str]:
    """The images that lost their name to a newer build, and those of older programs.

    Args:
        listing: what `ctr images list` prints: name, type, digest and more in each line.
        keep: the tag of the images that hold the present programs.
    """
    rows = [line.split() for line in listing.splitlines()[1:]]
    digests = {row[0]: row[2] for row in rows}
    # The kubelet's runtime names each image a second time, by the digest of its configuration.
    names = {name for name in digests if not name.startswith("sha256:")}
    old = {n for n in names if n.startswith(f"localhost/{paths.NAME}/") and tag(n) != keep}
    alive = {digests[name] for name in names - old}
    return sorted(old | {n for n in digests.keys() - names if digests[n] not in alive})


def tag(name: str) -> str:
    """The tag of an image's name."""
    return name.rpartition(":")[2]


def load(
    name: str, files: Mapping[str, Path], *, entrypoint: Sequence[str], user: str = "65532"
) -> None:
    """Make an image of a few files and import it, unless one of this name is there.

    Args:
        name: the whole reference, such as localhost/llm-operator-dev/pause:1.
        files: absolute path in the image → file on this machine.
        entrypoint: what a container runs.
        user: the user it runs as.
    """
    if exists(name):
        return
    config = {"Entrypoint": list(entrypoint), "User": user, "Env": ["PATH=/bin"]}
    with tempfile.NamedTemporaryFile(dir=paths.STATE, suffix=".tar") as archive:
        archive.write(layout(name, layer(files), config))
        archive.flush()
        ctr("images", "import", "--local", archive.name)


def layer(files: Mapping[str, Path]) -> bytes:
    """A tar archive of the files, each executable and root's; the same bytes for the same files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for target, source in sorted(files.items()):
            member = tarfile.TarInfo(target.lstrip("/"))
            content = source.read_bytes()
            member.size, member.mode = len(content), 0o755
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def layout(name: str, content: bytes, config: Json) -> bytes:
    """An OCI image layout, as a tar archive, of one image with one layer.

    Source: the OCI image specification 1.1, image-layout.md.
    """
    blobs: dict[str, bytes] = {}

    def blob(media_type: str, data: bytes) -> Json:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    layer_blob = blob(f"{OCI}.layer.v1.tar", content)
    image = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer_blob["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": blob(f"{OCI}.config.v1+json", _encode(image)),
        "layers": [layer_blob],
    }
    entry = blob(f"{OCI}.manifest.v1+json", _encode(manifest))
    entry["annotations"] = {"io.containerd.image.name": name}
    index = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.index.v1+json",
        "manifests": [entry],
    }
    head = {"oci-layout": _encode({"imageLayoutVersion": "1.0.0"}), "index.json": _encode(index)}
    return _archive({**head, **blobs})


def _archive(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for target, content in files.items():
            member = tarfile.TarInfo(target)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _encode(document: Json) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
