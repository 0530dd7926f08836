"""Secrets and ConfigMaps that pods read only when they start, and what they hold. Pure.

A change of what they hold restarts the pods: a digest of it stands in the pod template. Knows which
keys count. Never keeps or tells what a Secret holds.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llm_operator.api import LLMDeploymentSpec


@dataclass(frozen=True)
class Reference:
    """A Secret or ConfigMap that pods read, in the namespace of the LLMDeployment."""

    kind: Literal["Secret", "ConfigMap"]
    name: str
    key: str | None
    """The key that counts; None for all of them."""


def references(spec: LLMDeploymentSpec) -> Sequence[Reference]:
    """What the pods of `spec` read when they start.

    API keys are not among them: the server takes up a changed file by itself.
    """
    found = []
    for variable in spec.server.env:
        source = variable.value_from
        if source and source.secret_key_ref:
            found.append(Reference("Secret", source.secret_key_ref.name, source.secret_key_ref.key))
        elif source and source.config_map_key_ref:
            ref = source.config_map_key_ref
            found.append(Reference("ConfigMap", ref.name, ref.key))
    for each in spec.server.env_from:
        if each.secret_ref:
            found.append(Reference("Secret", each.secret_ref.name, None))
        elif each.config_map_ref:
            found.append(Reference("ConfigMap", each.config_map_ref.name, None))
    hub = spec.model.source.hub
    if hub and hub.token_secret:
        found.append(Reference("Secret", hub.token_secret.name, hub.token_secret.key))
    return found


def digests(body: Mapping[str, Any] | None) -> dict[str, str]:
    """A digest for each key of a Secret or ConfigMap; nothing if it does not exist."""
    if body is None:
        return {}
    # The uid keeps equal values of different objects from being recognised as equal.
    uid = str(body["metadata"]["uid"])
    held = {**body.get("data", {}), **body.get("binaryData", {})}
    return {key: _digest([uid, key, str(value)]) for key, value in held.items()}


def combined(found: Sequence[tuple[Reference, Mapping[str, str]]]) -> str | None:
    """One digest for all that the pods of a spec read; None if they read nothing.

    Args:
        found: Each reference with the digests of the keys of what it refers to.
    """
    if not found:
        return None
    words = []
    for reference, keys in found:
        counted = sorted(keys) if reference.key is None else [reference.key]
        words += [reference.kind, reference.name]
        words += [f"{key}={keys.get(key, '')}" for key in counted]
    return _digest(words)


def _digest(words: Sequence[str]) -> str:
    """Ten hexadecimal digits over `words`."""
    whole = hashlib.sha256()
    for word in words:
        whole.update(len(word).to_bytes(8, "big"))
        whole.update(word.encode())
    return whole.hexdigest()[:10]
