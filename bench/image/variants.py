"""The ways to build the image of a model that are compared, and how a container of each is run.

Knows Dockerfiles, targets and settings; does not know how an image is built or measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.image import HERE, ROOT
from dev.images.catalog import Image
from dev.stand_ins.models import SMOLLM2

REPOSITORY = "localhost/bench-image"
MODEL = SMOLLM2
HARDWARE = ("cpu", "gpu")


@dataclass(frozen=True)
class Variant:
    """One way to build the image.

    Attributes:
        name: How the tables call it.
        dockerfile: Its Dockerfile.
        stage: The stage that is built; `{hardware}` in it is filled in.
        python: A stage that has Python and a shell, which a served image need not have.
        arguments: Build arguments; `{hardware}` is filled in here too.
        full: Whether it starts from the full Python image rather than the slim one.
        preloaded: Whether the model is in it; if not it is fetched at start.
        read_only: Whether it can run without writing but to /tmp, and so is run that way.
    """

    name: str
    dockerfile: Path
    stage: str
    python: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    full: bool = False
    preloaded: bool = False
    read_only: bool = False

    def image(self, hardware: str) -> Image:
        """What is built for this hardware."""
        return Image(
            name=f"bench-{self.name}-{hardware}",
            reference=f"{REPOSITORY}:{self.name}-{hardware}",
            dockerfile=self.dockerfile.name,
            target=self.stage.format(hardware=hardware),
            model=MODEL,
        )

    def build_arguments(self, hardware: str) -> dict[str, str]:
        """The build arguments on top of those that say where things come from."""
        return {name: value.format(hardware=hardware) for name, value in self.arguments.items()}

    def settings(self, hub: str) -> dict[str, str]:
        """Variables of a container; `hub` is the address that a model is fetched from."""
        return {} if self.preloaded else {"HF_ENDPOINT": hub}


MULTI_STAGE = Variant(
    "multi-stage",
    ROOT / "Dockerfile.inference",
    "{hardware}",
    "builder",
    preloaded=True,
    read_only=True,
)
SINGLE_STAGE = Variant(
    "single-stage",
    HERE / "Dockerfile.single-stage",
    "server",
    "server",
    arguments={"HARDWARE": "{hardware}"},
    full=True,
)
ORDERED = Variant(
    "single-stage-ordered",
    HERE / "Dockerfile.single-stage-ordered",
    "server",
    "server",
    arguments={"HARDWARE": "{hardware}"},
    full=True,
)
ALL = (MULTI_STAGE, SINGLE_STAGE, ORDERED)


def named(names: list[str]) -> list[Variant]:
    """The variants of these names.

    Raises:
        ValueError: There is none of a name, or none at all.
    """
    known = {variant.name: variant for variant in ALL}
    if unknown := set(names) - set(known):
        raise ValueError(f"no image {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    if not names:
        raise ValueError("no image is named")
    return [known[name] for name in names]
