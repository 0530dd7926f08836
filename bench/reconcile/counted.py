"""The operator with its API requests counted, since the audit log records no reads.

Runs in the operator's process: `python -m bench.reconcile.counted FILE`. On SIGUSR1 it writes to
FILE how many requests of each method and resource it has sent, as JSON. Knows paths of the
Kubernetes API; changes nothing of what is sent.
"""

import json
import re
import signal
import sys
from collections import Counter
from pathlib import Path

import aiohttp

_PATH = re.compile(r"/(?:api|apis/[^/]+)/v[^/]+(?:/namespaces/[^/]+)?/([a-z]+)(/[^/?]+)?(/[a-z]+)?")

counts: Counter[str] = Counter()


def resource(method: str, path: str, query: str) -> str:
    """What a request does, such as `get deployments` or `patch llmdeployments/status`."""
    found = _PATH.search(path)
    if found is None:
        return f"{method.lower()} (discovery)"
    plural, name, subresource = found.groups()
    verb = method.lower()
    if verb == "get" and not name:
        verb = "watch" if "watch=true" in query else "list"
    return f"{verb} {plural}{subresource or ''}"


def count_requests(file: Path) -> None:
    """Count every request of every HTTP session in this process."""
    send = aiohttp.ClientRequest.send

    async def counted(
        self: aiohttp.ClientRequest, connection: aiohttp.connector.Connection
    ) -> aiohttp.ClientResponse:
        counts[resource(self.method, self.url.path, self.url.query_string)] += 1
        return await send(self, connection)

    aiohttp.ClientRequest.send = counted  # type: ignore[method-assign, assignment]
    signal.signal(signal.SIGUSR1, lambda *_: write(file))


def write(file: Path) -> None:
    """Write the counts so that a reader never sees half of them."""
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(counts))
    fresh.replace(file)


if __name__ == "__main__":
    count_requests(Path(sys.argv.pop(1)))
    from llm_operator.__main__ import main

    sys.exit(main())
