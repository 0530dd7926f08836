"""Requests that the API server refuses, or answers without the answer arriving."""

from __future__ import annotations

from contextlib import ExitStack

from tests.e2e.faults.convergence import Serving, assert_converged, fake
from tests.e2e.faults.operator_process import OperatorProcess
from tests.e2e.faults.proxy import WRITES, Answer, Break
from tests.e2e.harness import KIND, Kubectl, eventually

STANDING = [f"standing-{number}" for number in range(6)]
MANY = [f"model-{number:02}" for number in range(24)]
KEPT, DELETED = MANY[:16], MANY[16:]


def live_through(kubectl: Kubectl) -> None:
    """Many LLMDeployments are made, changed and partly deleted, while others just serve."""
    kubectl.apply(*(fake(name) for name in MANY))
    eventually(lambda: len(kubectl.items("deployments")) > len(MANY) / 2, within=60)
    kubectl("delete", KIND, *DELETED, "--wait=false")
    kubectl.apply(*(fake(name, 1) for name in KEPT))
    kubectl.apply(*(fake(name, 2, replicas=2) for name in KEPT[:4]))


def test_a_third_of_all_requests_is_refused(
    kubectl: Kubectl, operator: OperatorProcess, fake_nodes: None
):
    kubectl.apply(*(fake(name) for name in STANDING))
    eventually(lambda: assert_converged(kubectl, STANDING), within=30)
    serving = Serving.now(kubectl, STANDING)
    with ExitStack() as harm:
        too_many = harm.enter_context(operator.way.fault(Answer(429, retry_after=1), share=0.15))
        broken = harm.enter_context(operator.way.fault(Answer(500), share=0.15))
        unavailable = harm.enter_context(operator.way.fault(Answer(503), share=0.05))
        live_through(kubectl)
        # It gets there while a third of what it asks is refused, not only afterwards.
        eventually(lambda: assert_converged(kubectl, STANDING + KEPT), within=90)
        hits = [fault.hits for fault in (too_many, broken, unavailable)]
    assert min(hits) >= 3, f"hardly a request was refused: {hits}"
    assert Serving.now(kubectl, STANDING) == serving
    assert operator.exits == [], operator.last_words()


def test_answers_to_writes_are_lost(kubectl: Kubectl, operator: OperatorProcess, fake_nodes: None):
    kubectl.apply(*(fake(name) for name in STANDING))
    eventually(lambda: assert_converged(kubectl, STANDING), within=30)
    serving = Serving.now(kubectl, STANDING)
    with ExitStack() as harm:
        lost = harm.enter_context(operator.way.fault(Break(done=True), verbs=WRITES, share=0.4))
        unsent = harm.enter_context(operator.way.fault(Break(done=False), verbs=WRITES, share=0.1))
        live_through(kubectl)
        eventually(lambda: assert_converged(kubectl, STANDING + KEPT), within=90)
        assert lost.hits >= 10, f"only {lost.hits} answers were lost"
        assert unsent.hits >= 3
    assert Serving.now(kubectl, STANDING) == serving
    assert operator.exits == [], operator.last_words()
