"""Which tests may run at the same time, in several processes against one cluster.

Every test has a namespace of its own, so any two may, but for those that change something of the
cluster for all or share a costly fixture: they go to one process, one after the other. Tests that
bear with no other beside them are marked `exclusive` and run apart.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

# By the beginning of a test's name; what matches first counts.
SHARED = {
    # A fixture for the whole module.
    "test_api": "test_api",
    "test_status.py": "test_status",
    # Whether network policies bind.
    "test_exposure": "enforcer",
    "test_hub": "enforcer",
    "test_network_policy": "enforcer",
    # Which optional kinds there are.
    "test_examples": "kinds",
    "test_properties": "kinds",
    "test_scaling.py::test_a_kind_that_is_installed_later": "kinds",
    # How many GPUs the node has.
    "test_rollout": "gpus",
    "test_status_changes.py::test_a_server_that_was_given_a_gpu": "gpus",
    "test_target": "gpus",
}
LONGEST = ("gpus", "kinds", "test_status", "enforcer", "test_config", "test_scaling", "test_api")


class SharedTogether(LoadScopeScheduling):
    """Gives a process everything that shares something, and else one test at a time."""

    def _split_scope(self, nodeid: str) -> str:
        return shared(nodeid)


def shared(nodeid: str) -> str:
    """What a test shares with others; its own id where it shares nothing."""
    name = nodeid.rpartition("tests/e2e/")[2]
    return next((what for start, what in SHARED.items() if name.startswith(start)), name)


def longest_first(nodeid: str) -> int:
    """Where a test's place is in the order."""
    what = shared(nodeid)
    places = (at for at, start in enumerate(LONGEST) if what.startswith(start))
    return next(places, len(LONGEST))
