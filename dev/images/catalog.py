"""The images of development: what each is called, and what it is built from.

Knows Dockerfiles, targets and models; does not know how a build is run.
"""

import dataclasses

from dev.stand_ins import models


@dataclasses.dataclass(frozen=True)
class Image:
    """One image: its short name, its whole reference, and its part of a Dockerfile."""

    name: str
    reference: str
    dockerfile: str
    target: str
    model: models.Model | None = None

    @property
    def needs_torch(self) -> bool:
        """Whether its stages hold the CPU build of torch: every model is proven with it."""
        return self.model is not None or self.target == "cpu"


OPERATOR = Image("operator", "localhost/llm-operator:dev", "Dockerfile.operator", "operator")


def _inference(name: str, repository: str, target: str, model: models.Model) -> Image:
    return Image(name, f"localhost/{repository}", "Dockerfile.inference", target, model)


ALL = (
    OPERATOR,
    _inference("smollm2-cpu", "llm-inference:smollm2-cpu", "cpu", models.SMOLLM2),
    _inference("minilm-cpu", "llm-inference:minilm-cpu", "cpu", models.MINILM),
    _inference("smollm2-weights", "llm-weights:smollm2", "weights", models.SMOLLM2),
    _inference("smollm2-gpu", "llm-inference:smollm2-gpu", "gpu", models.SMOLLM2),
)


def named(name: str) -> Image:
    """Return the image called `name`.

    Raises:
        KeyError: There is none; the message lists those there are.
    """
    for image in ALL:
        if image.name == name:
            return image
    known = ", ".join(image.name for image in ALL)
    raise KeyError(f"there is no image {name!r}; there are {known}")
