"""A base image like ``python:3.13``, for the single-stage Dockerfile, where there is no registry.

Knows what the full image has on top of the slim one, as `Dockerfile.python-full` lists it; the slim
one's own stand-in is `dev.stand_ins.python_image`.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

from bench.image import HERE
from dev.cluster.commands import ClusterError
from dev.cluster.progress import say, step
from dev.images import builder
from dev.images.catalog import Image
from dev.images.sources import Sources
from dev.stand_ins import cache
from dev.stand_ins.reach import Real, is_reachable

RECIPE = "1"
REFERENCE = "python:3.13"
_IMAGE = Image("python-full", REFERENCE, "Dockerfile.python-full", "")


def given(sources: Sources, name: str | None) -> Sources:
    """The sources with the full Python image: as `name` calls it, from its registry, or stood in.

    Raises:
        ValueError: This machine has its own slim image and nobody says what its full one is.
        ClusterError: The stand-in could not be made.
    """
    if name is None and os.environ.get(Real.PYTHON_IMAGE.variable):
        raise ValueError("BASE_IMAGE names a slim image: name the full one with --python-image")
    if name is not None:
        return dataclasses.replace(sources, arguments={**sources.arguments, "PYTHON_IMAGE": name})
    if is_reachable(Real.PYTHON_IMAGE):
        return sources
    return dataclasses.replace(sources, layouts={**sources.layouts, REFERENCE: ensure(sources)})


def ensure(sources: Sources) -> Path:
    """Return the OCI layout of the stand-in, made now unless the cache has it.

    Raises:
        ClusterError: It could not be made; holds the end of what the build said.
    """
    layout = cache.stand_ins() / f"python-3.13-r{RECIPE}"
    with cache.locked(layout.name):
        if layout.exists():
            return layout
        say(f"stand-in: {REFERENCE} from its slim one and Debian's packages")
        with cache.building(layout) as scratch, step("install what the full image has"):
            output = f"type=oci,tar=false,dest={scratch},compression=uncompressed"
            done = subprocess.run(
                builder.command(_IMAGE, sources, output, context=HERE),
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise ClusterError(f"{REFERENCE} has no stand-in:\n{done.stderr[-2000:]}")
    return layout
