"""Which inference image a target runs: the LLMDeployment's own, or the operator's default."""

from typing import Protocol

from llm_operator.api import Image
from llm_operator.status import Target


class ImageChoice(Protocol):
    """What names images: `spec.image` and the operator's default runtime image."""

    @property
    def repository(self) -> str | None:
        """Repository of the images of all targets."""

    @property
    def tag(self) -> str | None:
        """Tag before the suffix of the target."""

    @property
    def cpu(self) -> str | None:
        """Whole reference for target cpu."""

    @property
    def gpu(self) -> str | None:
        """Whole reference for target gpu."""


def reference(image: Image, default: ImageChoice, target: Target) -> str | None:
    """Reference of the image that serves on `target`, or None if nothing names one."""
    if image.cpu or image.gpu:
        return image.cpu if target == "cpu" else image.gpu
    if image.repository:
        return _tagged(image.repository, image.tag, target)
    if image.tag:
        return _tagged(default.repository, image.tag, target) if default.repository else None
    whole = default.cpu if target == "cpu" else default.gpu
    if whole:
        return whole
    return _tagged(default.repository, default.tag, target) if default.repository else None


def _tagged(repository: str, tag: str | None, target: Target) -> str:
    return f"{repository}:{tag}-{target}" if tag else f"{repository}:{target}"
