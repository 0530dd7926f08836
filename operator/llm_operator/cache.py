"""What the operator last saw of each object, from watches, lists and the answers to its own writes.

Whatever is newest counts, whoever brought it: acting on an older view would write twice. Knows
versions and who belongs to whom; does not know what the objects mean.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llm_operator import names
from llm_operator.hardware import NodeFacts
from llm_operator.kube import LLM_DEPLOYMENT, NODE, POD, Resource

Body = Mapping[str, Any]
Key = tuple[str, str]
"""Namespace and name."""


class Cache:
    """The newest known state of objects."""

    def __init__(self) -> None:
        self._objects: defaultdict[Resource, dict[Key, Body]] = defaultdict(dict)
        self._pods: defaultdict[Key, dict[Key, Body]] = defaultdict(dict)
        self._nodes: dict[Key, NodeFacts] = {}

    def get(self, resource: Resource, key: Key) -> Body | None:
        """The newest known state of the object, or None if there is none."""
        return self._objects[resource].get(key)

    def llm_deployments(self) -> list[Key]:
        """Keys of all LLMDeployments."""
        return list(self._objects[LLM_DEPLOYMENT])

    def pods(self, key: Key) -> Iterable[Body]:
        """The pods of the LLMDeployment `key`."""
        return self._pods[key].values() if key in self._pods else ()

    def nodes(self) -> Iterable[NodeFacts]:
        """All nodes."""
        return self._nodes.values()

    def put(self, resource: Resource, body: Body) -> bool:
        """Take note of an object. Returns whether that is news."""
        key = key_of(body)
        known = self._objects[resource].get(key)
        if known is not None and _version(known) >= _version(body):
            return False
        if resource is NODE:
            self._nodes[key] = NodeFacts.of(body)
            body = {"metadata": {"resourceVersion": body["metadata"]["resourceVersion"]}}
        else:
            body = trimmed(body)
        self._objects[resource][key] = body
        if resource is POD:
            self._pods[owner_of(resource, body)][key] = body
        return True

    def remove(self, resource: Resource, body: Body) -> bool:
        """Take note that an object is gone. Returns whether that is news."""
        key = key_of(body)
        known = self._objects[resource].get(key)
        if known is None or _version(known) > _version(body):
            return False  # unknown, or made anew under the same name since
        self._discard(resource, key)
        return True

    def replace(
        self, resource: Resource, namespace: str, bodies: Sequence[Body], at: int
    ) -> set[Key]:
        """Take note of everything there is, by a list.

        Args:
            resource: Kind of the objects.
            namespace: Namespace that was listed; empty for all.
            bodies: The objects.
            at: Version of the list; what was seen later is newer than the list.

        Returns:
            Keys of the LLMDeployments that are concerned by what no watch had told.
        """
        concerned = {owner_of(resource, body) for body in bodies if self.put(resource, body)}
        there = {key_of(body) for body in bodies}
        for key, known in list(self._objects[resource].items()):
            listed = not namespace or key[0] == namespace
            if listed and key not in there and _version(known) <= at:
                concerned.add(owner_of(resource, known) if resource is POD else key)
                self._discard(resource, key)
        return concerned

    def _discard(self, resource: Resource, key: Key) -> None:
        body = self._objects[resource].pop(key)
        if resource is NODE:
            del self._nodes[key]
        elif resource is POD:
            owner = owner_of(resource, body)
            del self._pods[owner][key]
            if not self._pods[owner]:
                del self._pods[owner]


def key_of(body: Body) -> Key:
    """Namespace, empty for an object without one, and name."""
    metadata = body["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def owner_of(resource: Resource, body: Body) -> Key:
    """Key of the LLMDeployment that an object belongs to; all but pods carry its name."""
    namespace, name = key_of(body)
    if resource is POD:
        name = body["metadata"].get("labels", {}).get(names.INSTANCE_LABEL, "")
    return namespace, name


def trimmed(body: Body) -> Body:
    """`body` without managedFields, which are half of its size and never read."""
    metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
    return {**body, "metadata": metadata}


def _version(body: Body) -> int:
    return int(body["metadata"].get("resourceVersion", 0))
