"""What tests look at the cluster with: kstatus judges objects, peer tries connections.

Built when first asked for: a cluster that is only used needs neither.
"""

import json

from . import images, toolset
from .commands import run
from .kubectl import Json
from .toolset import Program, Toolset

CHECKS = Toolset(
    (
        Program("kstatus", "./kstatus", "checks"),
        Program("peer", "./peer", "checks"),
    )
)


def status(manifest: Json) -> Json:
    """How far an object is by the rules of kstatus, as Flux, Argo CD and kpt judge it.

    Args:
        manifest: the whole object as the API server gives it.

    Returns:
        `status` (Current, InProgress, Failed, Terminating) and `message`.

    Raises:
        ClusterError: kstatus does not take it for an object.
    """
    CHECKS.build()
    verdict: Json = json.loads(run([CHECKS.path("kstatus")], text=json.dumps(manifest)))
    return verdict


def load_peer() -> str:
    """Have an image of `peer` on the node; return its reference."""
    CHECKS.build()
    # Not under the cluster's own name: `up` removes what does not have its programs' tag there.
    name = f"localhost/checks/peer:{toolset.digest(CHECKS)}"
    images.load(name, {"/peer": CHECKS.path("peer")}, entrypoint=["/peer"])
    return name
