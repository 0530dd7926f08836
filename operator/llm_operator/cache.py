"""What the operator last saw of each object, from watches, lists and the answers to its own writes.

Whatever is newest counts, whoever brought it: acting on an older view would write twice. Knows
versions, who belongs to whom and which parts of an object are read; does not know what they mean.

Of each object that alone is kept, in strings that all objects share: a third of the memory. And a
change of what is not kept, such as a count in the status of a Deployment, is no news to anybody.
"""

import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from llm_operator import names
from llm_operator.hardware import NodeFacts
from llm_operator.resources import (
    DEPLOYMENT,
    LLM_DEPLOYMENT,
    NETWORK_POLICY,
    NODE,
    POD,
    POD_DISRUPTION_BUDGET,
    POD_MONITOR,
    SERVICE,
    Resource,
)

Body = Mapping[str, Any]
Key = tuple[str, str]
"""Namespace and name."""

_NO_STATUS_READ = frozenset({SERVICE, NETWORK_POLICY, POD_DISRUPTION_BUDGET, POD_MONITOR})
_APART = frozenset({"metadata", "spec", "status"})
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_NOT_OF_POD_METADATA = frozenset({"managedFields", "annotations", "generateName"})
_NOT_OF_POD_SPEC = frozenset({"affinity", "securityContext", "tolerations", "volumes"})
_NOT_OF_CONTAINER = frozenset(
    {"lifecycle", "livenessProbe", "ports", "readinessProbe", "securityContext", "volumeMounts"}
)
_OF_CONDITION = frozenset({"type", "status", "reason", "message"})
_LONGEST_SHARED = 64
"""Longer strings, such as messages, are seldom the same."""


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

    def trim(self, resource: Resource, body: Body) -> Body:
        """What would be kept of an object; where it is known as it is, that itself."""
        if resource is NODE:
            return body
        known = self._objects[resource].get(key_of(body))
        if known is not None and _version(known) == _version(body):
            return known
        return kept(resource, body, known)

    def put(self, resource: Resource, body: Body) -> bool:
        """Take note of an object. Returns whether that is news: whether what is kept differs."""
        key = key_of(body)
        known = self._objects[resource].get(key)
        if known is not None and _version(known) >= _version(body):
            return False
        if resource is NODE:
            self._nodes[key] = NodeFacts.of(body)
            body = {"metadata": {"resourceVersion": body["metadata"]["resourceVersion"]}}
        else:
            body = kept(resource, body, known)
        self._objects[resource][key] = body
        if resource is POD:
            self._pods[owner_of(resource, body)][key] = body
        return known is None or resource is NODE or not _says_the_same(known, body)

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


def kept(resource: Resource, body: Body, known: Body | None = None) -> dict[str, Any]:
    """What is kept of an object.

    Args:
        resource: Kind of the object.
        body: The object as it is now.
        known: What is kept of it so far; a Deployment keeps its spec while that is the same.
    """
    result = {name: _shared(value) for name, value in body.items() if name not in _APART}
    result["metadata"] = _shared(_metadata(resource, body["metadata"]))
    if resource is DEPLOYMENT and known and _same_generation(known, body):
        result["spec"] = known["spec"]
    elif "spec" in body:
        result["spec"] = _shared(_pod_spec(body["spec"]) if resource is POD else body["spec"])
    if "status" in body and resource not in _NO_STATUS_READ:
        status = body["status"]
        result["status"] = _shared(_conditions(status) if resource is DEPLOYMENT else status)
    return result


def _metadata(resource: Resource, metadata: Body) -> Body:
    if resource is POD:
        return _without(_NOT_OF_POD_METADATA, metadata)
    result = {name: value for name, value in metadata.items() if name != "managedFields"}
    if _LAST_APPLIED in result.get("annotations", ()):
        annotations = result["annotations"].items()
        result["annotations"] = {name: text for name, text in annotations if name != _LAST_APPLIED}
    return result


def _pod_spec(spec: Body) -> Body:
    containers = [_without(_NOT_OF_CONTAINER, each) for each in spec.get("containers", ())]
    return {**_without(_NOT_OF_POD_SPEC, spec), "containers": containers}


def _conditions(status: Body) -> Body:
    conditions = status.get("conditions", ())
    observed = {name: status[name] for name in ("observedGeneration",) if name in status}
    return observed | {
        "conditions": [
            {name: value for name, value in each.items() if name in _OF_CONDITION}
            for each in conditions
        ]
    }


def _without(unread: Collection[str], node: Body) -> Body:
    return {name: value for name, value in node.items() if name not in unread}


def _same_generation(one: Body, other: Body) -> bool:
    """Whether the spec of an object is still the same."""
    (one, other) = (one["metadata"], other["metadata"])
    return "generation" in one and all(one[name] == other[name] for name in ("uid", "generation"))


def _shared(value: Any) -> Any:  # noqa: ANN401 - JSON, as it is
    """A copy of `value` with one copy of each string in memory: names come with every object."""
    if isinstance(value, dict):
        return {sys.intern(name): _shared(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_shared(child) for child in value]
    if isinstance(value, str) and len(value) <= _LONGEST_SHARED:
        return sys.intern(value)
    return value


def _says_the_same(one: Body, other: Body) -> bool:
    """Whether two states of an object differ in nothing but the version."""
    unversioned = {"resourceVersion": None}
    return {**one, "metadata": one["metadata"] | unversioned} == {
        **other,
        "metadata": other["metadata"] | unversioned,
    }


def _version(body: Body) -> int:
    return int(body["metadata"].get("resourceVersion", 0))
