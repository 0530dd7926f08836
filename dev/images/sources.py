"""Where a build gets its base image, packages and model: the real places, or stand-ins.

Whatever stands in goes through the arguments, secrets and contexts that a closed network would
use. Knows which of those the Dockerfiles have; does not know how a build is run.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from dev.images.catalog import Image
from dev.stand_ins import cache, mirror, models, python_image, repositories, torch_wheel
from dev.stand_ins.reach import Real, is_reachable
from dev.stand_ins.repositories import Repository

IMAGE_PYTHON = "3.13"
# Variables of this machine that a build takes as its argument of the same name.
PASSED_ON = ("BASE_IMAGE", "PACKAGE_INDEX", "TORCH_CPU_INDEX", "HF_ENDPOINT")


@dataclasses.dataclass(frozen=True)
class Sources:
    """What the builds of one run get."""

    arguments: dict[str, str]
    secrets: list[str]
    # name of an image in a Dockerfile → OCI layout that takes its place
    layouts: dict[str, Path]
    repositories: dict[str, Repository]
    # name of a stage → directory that takes its place
    directories: dict[str, Path] = dataclasses.field(default_factory=dict)

    def for_image(self, image: Image) -> dict[str, str]:
        """Return the build arguments of one image."""
        arguments = dict(self.arguments)
        if image.model is not None:
            arguments["MODEL_ID"] = image.model.id
            if image.model.id in self.repositories:
                # Pinned, so that a changed model is a changed build.
                arguments["MODEL_REVISION"] = self.repositories[image.model.id].revision
        return arguments


@contextlib.contextmanager
def opened(images: list[Image]) -> Iterator[Sources]:
    """Yield the sources of `images`; a mirror that they need serves until the block ends."""
    arguments = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    if index := os.environ.get("PIP_INDEX_URL"):
        arguments.setdefault("PACKAGE_INDEX", index)
    layouts = {}
    if not is_reachable(Real.PYTHON_IMAGE):
        layouts[python_image.REFERENCE] = python_image.ensure()
    mirrored = Sources(arguments, _secrets(), layouts, {})
    wheels, found = _to_mirror(images)
    if not wheels and not found:
        yield mirrored
        return
    # One build run at a time on this machine: the mirror's address is fixed.
    with cache.locked("mirror"), mirror.serving(mirror.Mirror(found, wheels)) as server:
        if wheels:
            arguments["TORCH_CPU_INDEX"] = server.url + "/simple"
        if found:
            arguments["HF_ENDPOINT"] = server.url
        yield dataclasses.replace(mirrored, repositories=found)


def _to_mirror(images: list[Image]) -> tuple[list[Path], dict[str, Repository]]:
    """Return the wheels and repositories that `images` need and that cannot be reached."""
    wheels, found = [], {}
    if any(image.needs_torch for image in images) and not is_reachable(Real.TORCH_CPU):
        wheels.append(torch_wheel.ensure(IMAGE_PYTHON))
    wanted = {image.model for image in images if image.model is not None}
    if wanted and not is_reachable(Real.HUB):
        for model in wanted:
            found[model.id] = repositories.read(model.id, models.ensure(model))
    return wheels, found


def _secrets() -> list[str]:
    secrets = []
    if bundle := os.environ.get("SSL_CERT_FILE"):
        secrets.append(f"id=ca_bundle,src={bundle}")
    if os.environ.get("HF_TOKEN"):
        secrets.append("id=hf_token,env=HF_TOKEN")
    return secrets
