"""Watches that are cut or fall silent, and what happened meanwhile."""

from __future__ import annotations

import time

from tests.e2e.faults.convergence import Serving, assert_converged, fake
from tests.e2e.faults.operator_process import OperatorProcess
from tests.e2e.harness import KIND, Kubectl, eventually

MANY = [f"model-{number:02}" for number in range(24)]
CHANGING, STANDING = MANY[:12], MANY[12:]


def test_watches_are_cut_while_specs_change(
    kubectl: Kubectl, operator: OperatorProcess, fake_nodes: None
):
    kubectl.apply(*(fake(name) for name in MANY))
    eventually(lambda: assert_converged(kubectl, MANY), within=60)
    serving = Serving.now(kubectl, STANDING)
    cut = 0
    for mark in range(1, 7):
        cut += operator.way.cut_watches()
        kubectl.apply(*(fake(name, mark) for name in CHANGING))
        cut += operator.way.cut_watches()
        time.sleep(0.5)
    assert cut >= 24, "the operator held hardly any watch: nothing was shown"
    eventually(lambda: assert_converged(kubectl, MANY), within=60)
    assert Serving.now(kubectl, STANDING) == serving


def test_watches_fall_silent_without_ending(
    kubectl: Kubectl, operator: OperatorProcess, fake_nodes: None
):
    kubectl.apply(*(fake(name) for name in MANY))
    eventually(lambda: assert_converged(kubectl, MANY), within=60)
    serving = Serving.now(kubectl, STANDING)
    assert operator.way.mute_watches() >= 4, "the operator watches too little to be harmed"
    kubectl.apply(*(fake(name, 1) for name in CHANGING[1:]))
    kubectl("delete", KIND, CHANGING[0])
    kubectl("delete", "deployment,service", STANDING[0])
    left = [name for name in MANY if name != CHANGING[0]]
    eventually(lambda: assert_converged(kubectl, left), within=60)
    assert Serving.now(kubectl, STANDING[1:]) == serving.without(STANDING[0])


def test_objects_are_deleted_while_no_operator_looks(
    kubectl: Kubectl, operator: OperatorProcess, fake_nodes: None
):
    kubectl.apply(*(fake(name) for name in MANY))
    eventually(lambda: assert_converged(kubectl, MANY), within=60)
    serving = Serving.now(kubectl, STANDING)
    operator.kill()
    kubectl("delete", "service", *CHANGING[:4])
    kubectl("delete", "deployment", *CHANGING[2:6])
    kubectl("delete", KIND, CHANGING[6], CHANGING[7])
    kubectl.apply(*(fake(name, 1) for name in CHANGING[8:]), fake(CHANGING[7], 5))
    operator.restart()
    left = [name for name in MANY if name != CHANGING[6]]
    eventually(lambda: assert_converged(kubectl, left), within=60)
    assert Serving.now(kubectl, STANDING) == serving


def test_an_error_comes_over_the_watch(
    kubectl: Kubectl, operator: OperatorProcess, fake_nodes: None
):
    kubectl.apply(*(fake(name) for name in CHANGING))
    eventually(lambda: assert_converged(kubectl, CHANGING), within=60)
    for code in (410, 500):
        assert operator.way.end_watches(code) >= 4, "the operator watches too little to be harmed"
        kubectl.apply(*(fake(name, code) for name in CHANGING))
        eventually(lambda: assert_converged(kubectl, CHANGING), within=60)
    # What the API server cannot explain may end the operator, if only the kubelet starts it again.
    assert 0 not in operator.exits
