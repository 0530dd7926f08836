"""Talk to the cluster's API server, with kubectl as its admin."""

import json
from typing import Any

from . import paths, tools
from .commands import run

Json = dict[str, Any]


def kubectl(*arguments: str, text: str | None = None, timeout: float = 120) -> str:
    """Run kubectl against this cluster, whatever KUBECONFIG says, and return its output."""
    command = [str(tools.path("kubectl")), f"--kubeconfig={paths.KUBECONFIG}", *arguments]
    return run(command, text=text, timeout=timeout)


def get(*arguments: str) -> Json:
    """Read an object, or a list of them."""
    document: Json = json.loads(kubectl("get", *arguments, "-o", "json"))
    return document


def apply(manifest: str | Json) -> None:
    """Apply a manifest, YAML text or one object."""
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=text)
