"""Layers of an image in containerd, as a registry would store and a node would pull them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dev.cluster import images


@dataclass(frozen=True)
class Layer:
    """A layer's blob: its digest, its size in bytes as it is stored, and the step that made it."""

    digest: str
    size: int
    step: str = ""


def of(manifest: dict[str, Any], config: dict[str, Any]) -> list[Layer]:
    """The layers of a manifest, from the lowest to the uppermost.

    The steps are the configuration's history, as far as that has one for each layer.
    """
    history = [
        str(line.get("created_by", ""))
        for line in config.get("history") or ()
        if not line.get("empty_layer")
    ]
    found = manifest["layers"]
    steps = history if len(history) == len(found) else [""] * len(found)
    return [
        Layer(layer["digest"], layer["size"], step)
        for layer, step in zip(found, steps, strict=True)
    ]


def new_bytes(before: Iterable[Layer], after: Iterable[Layer]) -> int:
    """Bytes of the layers that who has the image `before` has to be sent to have `after`."""
    had = {layer.digest for layer in before}
    return sum({layer.digest: layer.size for layer in after if layer.digest not in had}.values())


def manifest(digest: str) -> dict[str, Any]:
    """The manifest of one platform that containerd holds under a digest, or an index of it."""
    found = _content(digest)
    if "manifests" in found:
        found = _content(found["manifests"][0]["digest"])
    return found


def config(manifest: dict[str, Any]) -> dict[str, Any]:
    """The configuration of an image: how containers are run in `config`, and its `history`."""
    return _content(manifest["config"]["digest"])


def path(config: dict[str, Any]) -> str:
    """The PATH that a container has."""
    return dict(pair.split("=", 1) for pair in config["config"].get("Env") or ()).get("PATH", "")


def _content(digest: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(images.ctr("content", "get", digest))
    return found
