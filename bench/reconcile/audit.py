"""The operator's writes, from the API server's audit log: what it did, not what it says it did.

Knows the log's form and that it is rotated. Does not know whose writes are looked for.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dev.cluster import paths

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


def writes(user: str, *, since: str = "") -> Counter[str]:
    """How often `user` wrote, by verb, resource and outcome.

    Args:
        user: The whole name of a user that is new with this run.
        since: Time from which on writes count, as the log writes it; all if empty.
    """
    counted: Counter[str] = Counter()
    for event in _events(user):
        if event["verb"] not in WRITES or event["requestReceivedTimestamp"] < since:
            continue
        reference, code = event["objectRef"], event["responseStatus"]["code"]
        what = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
        refused = f" ({code})" if code >= 400 else ""  # noqa: PLR2004 - failure in HTTP
        counted[f"{event['verb']} {what}{refused}"] += 1
    return counted


def _events(user: str) -> Iterator[dict[str, Any]]:
    """What `user` did, from the current file and those that were rotated away."""
    mark = f'"username":"{user}"'.encode()
    for file in sorted(paths.LOGS.glob("audit*.log")):
        with Path(file).open("rb") as lines:
            for line in lines:
                if mark in line and b'"stage":"ResponseComplete"' in line:
                    yield json.loads(line)
