"""Whether a live object still is what was applied, so that nothing is written for nothing. Pure.

Fields that others set beside ours are theirs, as in server-side apply: `kubectl rollout restart`
works. Not in selectors and in the rules of a NetworkPolicy, where one word more means something
else. Knows how the API server rewrites what it is given: quantities; what says nothing is left out.
"""

from collections.abc import Mapping

from llm_operator import quantities

_QUANTITY_FIELDS = frozenset({"limits", "requests"})
# Keys by which the API server merges lists of objects.
_MERGE_KEYS = ("name", "uid", "containerPort", "mountPath")


# What means something else as soon as anything is added.
_EXACT_FIELDS = frozenset({"selector", "podSelector", "ingress", "egress"})
_DEFAULTED = frozenset({"protocol"})
"""What the API server adds even there."""


def matches(wanted: object, live: object, *, exact: bool = False) -> bool:
    """Whether `live` holds everything that `wanted` says, and if `exact`, nothing else."""
    if isinstance(wanted, Mapping):
        return (
            isinstance(live, Mapping)
            and not (exact and live.keys() - wanted.keys() - _DEFAULTED)
            and all(
                _field_matches(name, value, live.get(name), exact=exact)
                for name, value in wanted.items()
            )
        )
    if isinstance(wanted, list):
        return isinstance(live, list) and _list_matches(wanted, live, exact=exact)
    return bool(wanted == live)


def _field_matches(name: str, wanted: object, live: object, *, exact: bool) -> bool:
    if live is None:
        return wanted in (None, "", [], {}, False)  # what the API server leaves out
    if name in _QUANTITY_FIELDS and isinstance(wanted, Mapping) and isinstance(live, Mapping):
        return _quantities_match(wanted, live)
    return matches(wanted, live, exact=exact or name in _EXACT_FIELDS)


def _quantities_match(wanted: Mapping[str, int | str], live: Mapping[str, int | str]) -> bool:
    return all(
        name in live and quantities.parse(amount) == quantities.parse(live[name])
        for name, amount in wanted.items()
    )


def _list_matches(wanted: list[object], live: list[object], *, exact: bool) -> bool:
    key = None if exact else _merge_key(wanted)
    if key is None:
        return len(wanted) == len(live) and all(
            matches(one, other, exact=exact) for one, other in zip(wanted, live, strict=True)
        )
    by_key = {item[key]: item for item in live if isinstance(item, Mapping) and key in item}
    return all(
        item[key] in by_key and matches(item, by_key[item[key]])
        for item in wanted
        if isinstance(item, Mapping)
    )


def _merge_key(items: list[object]) -> str | None:
    """The key that names each of `items`; None for a list that is replaced as a whole."""
    for key in _MERGE_KEYS:
        if items and all(isinstance(item, Mapping) and key in item for item in items):
            return key
    return None
