"""Whose an object is: the LLMDeployment's, a former one's of the same name, or a stranger's. Pure.

Nothing of a stranger is ever changed. What the operator made and nobody owns any more, because its
LLMDeployment was deleted without its objects, is taken up again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_operator import api, names
from llm_operator.api import LLMDeployment

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Occupied:
    """Why an object cannot be that of an LLMDeployment."""

    message: str
    passing: bool
    """It will be gone soon, without anybody's doing."""


def owned(live: Body, cr: LLMDeployment) -> bool:
    """Whether `cr` is the controller of the object `live`."""
    owner = _controller(live)
    return owner is not None and owner["uid"] == cr.metadata.uid


def occupied(live: Body, cr: LLMDeployment, kind: str) -> Occupied | None:
    """Why the object `live` of `kind` cannot become the one of `cr`; None if it can, or is."""
    what = f"{kind} {cr.metadata.name}"
    owner = _controller(live)
    if owner is None:
        if _left_behind(live, cr):
            return None
        message = f"{what} exists and has no owner"
        return Occupied(f"{message}: {_remedy()}", passing=False)
    if owner["uid"] != cr.metadata.uid:
        if (owner["kind"], owner["name"]) == (api.KIND, cr.metadata.name):
            message = f"{what} of a deleted {api.KIND} of the same name is being removed"
            return Occupied(message, passing=True)
        message = f"{what} exists and belongs to {owner['kind']} {owner['name']}"
        return Occupied(f"{message}: {_remedy()}", passing=False)
    if "deletionTimestamp" in live["metadata"]:
        return Occupied(f"{what} is being deleted", passing=True)
    return None


def _remedy() -> str:
    return f"delete it, or give the {api.KIND} another name"


def _controller(live: Body) -> Mapping[str, Any] | None:
    owners: list[Mapping[str, Any]] = live["metadata"].get("ownerReferences", [])
    return next((owner for owner in owners if owner.get("controller")), None)


def _left_behind(live: Body, cr: LLMDeployment) -> bool:
    """Whether `live` is what the operator made for an LLMDeployment of the same name."""
    labels = live["metadata"].get("labels", {})
    own = names.labels(cr.metadata.name)
    return "deletionTimestamp" not in live["metadata"] and all(
        labels.get(key) == value for key, value in own.items()
    )
