"""What the operator last saw of each object: the watches' view, and its own writes before them.

A watch brings a write back only after a moment. Until then the answer to the write is newer, and
acting on the older view would write twice. Knows versions; does not know what the objects mean.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from llm_operator.kube import Resource

Body = Mapping[str, Any]
Key = tuple[str, str]
"""Namespace and name."""


class Index(Protocol):
    """The part of kopf's index that is read: every known object under its key."""

    def __iter__(self) -> Iterator[Key]:
        """All keys."""

    def __contains__(self, key: object, /) -> bool:
        """Whether an object is known under `key`."""

    def __getitem__(self, key: Key, /) -> Iterable[Body]:
        """The objects under `key`."""


class Cache:
    """The newest known state of objects.

    Args:
        indexes: For each kind, what its watch brought.
    """

    def __init__(self, indexes: Mapping[Resource, Index]) -> None:
        self._indexes = indexes
        self._written: dict[tuple[Resource, Key], Body] = {}

    def keys(self, resource: Resource) -> list[Key]:
        """Keys of all objects that the watch of `resource` brought."""
        return list(self._indexes[resource])

    def get(self, resource: Resource, key: Key) -> Body | None:
        """The newest known state of the object, or None if there is none."""
        watched = self._watched(resource, key)
        written = self._written.get((resource, key))
        if written is None:
            return watched
        if watched is None or _version(watched) < _version(written):
            return written
        del self._written[resource, key]
        return watched

    def wrote(self, resource: Resource, key: Key, body: Body) -> None:
        """Remember the API server's answer to a write."""
        self._written[resource, key] = body

    def forget(self, resource: Resource, key: Key) -> None:
        """The object is gone: what was written no longer counts."""
        self._written.pop((resource, key), None)

    def _watched(self, resource: Resource, key: Key) -> Body | None:
        index = self._indexes[resource]
        if key not in index:
            return None
        # Two for a moment, when an object was deleted and made anew under the same name.
        return max(index[key], key=_version)


def trimmed(body: Mapping[str, Any]) -> Body:
    """`body` without managedFields, which are half of its size and never read."""
    metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
    return {**body, "metadata": metadata}


def _version(body: Body) -> int:
    return int(body["metadata"].get("resourceVersion", 0))
