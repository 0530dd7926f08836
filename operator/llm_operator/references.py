"""Secrets and ConfigMaps that pods read only when they start, and what they hold. Pure.

A change of what they hold restarts the pods: a digest of it stands in the pod template. Knows which
keys count. Never keeps or tells what a Secret holds.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llm_operator.api import LLMDeploymentSpec
from llm_operator.podspec import KeySelector, WholeReference

Kind = Literal["Secret", "ConfigMap"]


@dataclass(frozen=True)
class Reference:
    """A Secret or ConfigMap that pods read, in the namespace of the LLMDeployment."""

    kind: Kind
    name: str
    key: str | None
    """The key that counts; None for all of them."""
    optional: bool = False
    """Whether pods start without it."""


def references(spec: LLMDeploymentSpec) -> Sequence[Reference]:
    """What the pods of `spec` read when they start.

    API keys are not among them: the server takes up a changed file by itself.
    """
    found = []
    for variable in spec.server.env:
        source = variable.value_from
        if source and source.secret_key_ref:
            found.append(_one_key("Secret", source.secret_key_ref))
        elif source and source.config_map_key_ref:
            found.append(_one_key("ConfigMap", source.config_map_key_ref))
    for each in spec.server.env_from:
        if each.secret_ref:
            found.append(_all_keys("Secret", each.secret_ref))
        elif each.config_map_ref:
            found.append(_all_keys("ConfigMap", each.config_map_ref))
    hub = spec.model.source.hub
    if hub and hub.token_secret:
        found.append(Reference("Secret", hub.token_secret.name, hub.token_secret.key))
    return found


def _one_key(kind: Kind, selector: KeySelector) -> Reference:
    return Reference(kind, selector.name, selector.key, optional=bool(selector.optional))


def _all_keys(kind: Kind, whole: WholeReference) -> Reference:
    return Reference(kind, whole.name, None, optional=bool(whole.optional))


def lacking(found: Sequence[tuple[Reference, Mapping[str, str] | None]]) -> bool:
    """Whether something is missing that pods do not start without.

    Args:
        found: Each reference with the digests of the keys of what it refers to; None for an object
            that does not exist.
    """
    return any(
        keys is None or (reference.key is not None and reference.key not in keys)
        for reference, keys in found
        if not reference.optional
    )


def digests(body: Mapping[str, Any]) -> dict[str, str]:
    """A digest for each key of a Secret or ConfigMap."""
    # The uid keeps equal values of different objects from being recognised as equal.
    uid = str(body["metadata"]["uid"])
    held = {**(body.get("data") or {}), **(body.get("binaryData") or {})}
    return {key: _digest([uid, key, str(value)]) for key, value in held.items()}


def combined(found: Sequence[tuple[Reference, Mapping[str, str] | None]]) -> str | None:
    """One digest for all that the pods of a spec read; None if they read nothing.

    Args:
        found: Each reference with the digests of the keys of what it refers to; None for an object
            that does not exist.
    """
    if not found:
        return None
    words = []
    for reference, there in found:
        keys = there or {}
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
