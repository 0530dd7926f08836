"""Operators that die at any instant, and two of which only one may act."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from tests.e2e.faults.conftest import SEED, Start
from tests.e2e.faults.convergence import Serving, assert_converged, fake
from tests.e2e.faults.operator_process import OperatorProcess
from tests.e2e.faults.proxy import Request
from tests.e2e.harness import Kubectl, eventually

MANY = [f"model-{number:02}" for number in range(20)]
CHANGING, STANDING = MANY[:12], MANY[12:]

KILLS = 8
TAKE_OVER_SECONDS = 20.0


def test_killed_again_and_again_while_specs_change(
    kubectl: Kubectl, operator: OperatorProcess, fake_nodes: None
):
    dice = random.Random(SEED)
    kubectl.apply(*(fake(name) for name in MANY))
    eventually(lambda: assert_converged(kubectl, MANY), within=60)
    serving = Serving.now(kubectl, STANDING)
    busy = 0
    for mark in range(1, KILLS + 1):
        changes = threading.Thread(
            target=kubectl.apply, args=[fake(name, mark) for name in CHANGING]
        )
        before = len(operator.way.writes)
        changes.start()
        last = before + dice.randint(1, 2 * len(CHANGING))
        eventually(lambda last=last: len(operator.way.writes) >= last, within=30, every=0.002)
        operator.kill()
        changes.join()
        busy += is_busy(kubectl, mark)
        if dice.random() < 0.5:  # killed again while it starts
            operator.start()
            time.sleep(dice.uniform(0.5, 3))
            operator.kill()
        operator.restart()
    assert busy >= KILLS / 2, f"it had work left at {busy} of {KILLS} kills: they came too late"
    eventually(lambda: assert_converged(kubectl, MANY), within=60)
    assert Serving.now(kubectl, STANDING) == serving


def is_busy(kubectl: Kubectl, mark: int) -> bool:
    """Whether some Deployments do not have the newest mark yet."""
    envs = [
        {v["name"]: v.get("value") for v in d["spec"]["template"]["spec"]["containers"][0]["env"]}
        for d in kubectl.items("deployments")
    ]
    return any(env["LLM_MAX_QUEUE"] != str(mark) for env in envs if env["LLM_MAX_QUEUE"] != "0")


def test_a_leader_that_is_cut_off_is_followed(kubectl: Kubectl, start: Start, fake_nodes: None):
    first = start("first")
    eventually(lambda: first.way.writes_to("leases"), within=20)
    second = start("second")
    kubectl.apply(*(fake(name) for name in MANY))
    eventually(lambda: assert_converged(kubectl, MANY), within=60)
    assert objects_written(second) == [], "the follower wrote"
    serving = Serving.now(kubectl, STANDING)

    began = time.monotonic()
    kubectl.apply(*(fake(name, 1) for name in CHANGING[:6]))
    first.way.part()
    kubectl.apply(*(fake(name, 2) for name in CHANGING))
    taken_over = wait_for(lambda: objects_written(second), within=TAKE_OVER_SECONDS + 20)[0].at
    assert taken_over - began < TAKE_OVER_SECONDS
    eventually(lambda: first.exits, within=TAKE_OVER_SECONDS)
    assert first.exits[0] != 0, "the kubelet would call it completed"
    first.way.mend()
    eventually(lambda: assert_converged(kubectl, MANY), within=60)

    # Back in reach it follows: not one write of its own since the other's first.
    kubectl.apply(*(fake(name, 3) for name in CHANGING))
    eventually(lambda: assert_converged(kubectl, MANY), within=60)
    late = [write for write in objects_written(first) if write.at >= taken_over]
    assert late == [], f"two wrote at once: {late}"
    assert second.exits == []
    assert Serving.now(kubectl, STANDING) == serving


def test_a_leader_that_is_told_to_stop_is_followed_at_once(
    kubectl: Kubectl, start: Start, fake_nodes: None
):
    first = start("first")
    eventually(lambda: first.way.writes_to("leases"), within=20)
    second = start("second")
    kubectl.apply(*(fake(name) for name in MANY))
    eventually(lambda: assert_converged(kubectl, MANY), within=60)
    kubectl.apply(*(fake(name, 1) for name in CHANGING))
    first.stop()
    assert first.exit_code == 0
    stopped = time.monotonic()
    taken_over = wait_for(lambda: objects_written(second), within=TAKE_OVER_SECONDS)[0].at
    assert taken_over - stopped < 10, "the Lease was not given back but ran out"
    eventually(lambda: assert_converged(kubectl, MANY), within=60)
    assert [write for write in objects_written(first) if write.at >= taken_over] == []


def objects_written(operator: OperatorProcess) -> list[Request]:
    """Writes to anything but the Lease and Events about it."""
    return [r for r in operator.way.writes if "/leases" not in r.path and "/events" not in r.path]


def wait_for(look: Callable[[], list[Request]], *, within: float) -> list[Request]:
    """What ``look`` sees once it sees something."""
    return eventually(look, within=within, every=0.1)
