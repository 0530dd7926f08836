"""Ask a component over HTTP whether it serves."""

import ssl
import urllib.error
import urllib.request

from . import certificates

OK = 200


def answers(url: str, *, timeout: float = 2) -> bool:
    """Whether a GET of `url` is answered with 200; https is checked against the cluster's CA."""
    try:
        context = None
        if url.startswith("https:"):
            context = ssl.create_default_context(cafile=str(certificates.CLUSTER_CA))
        # The machine's proxy settings are for the world, not for a component next door.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(url, timeout=timeout) as answer:
            return bool(answer.status == OK)
    except (OSError, urllib.error.URLError):
        return False
