"""Specs that cannot be met are refused with a sentence that says what to change."""

import pytest

from llm_operator.profiles import HardwareProfile
from llm_operator.validity import InvalidSpecError, check_claim, is_pinned, resolve

PROFILES = {
    "big": HardwareProfile.read("big", {"gpu": {"count": 4}}),
    "small": HardwareProfile.read("small", {"resources": {"limits": {"memory": "1Gi"}}}),
    "counted": HardwareProfile.read("counted", {"resources": {"requests": {"cpu": "2"}}}),
}
CACHE = {"source": {"hub": {"cache": {"claimName": "models"}}}}
VOLUME = {"source": {"persistentVolumeClaim": {"claimName": "models"}}}


def refusal(cr):
    with pytest.raises(InvalidSpecError) as caught:
        resolve(cr, PROFILES)
    return str(caught.value)


def test_a_spec_without_profile_stays_what_it_is(make):
    cr = make()
    assert resolve(cr, PROFILES) == cr


def test_a_profile_is_merged(make):
    assert resolve(make(hardwareProfile="big"), PROFILES).spec.gpu.count == 4


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"hardwareProfile": "huge"}, ["no profile huge", "big, counted, small"]),
        ({"hardwareProfile": "big", "target": "cpu"}, ["asks for a GPU but target is cpu"]),
        ({"hardwareProfile": "big", "image": {"cpu": "a:1"}}, ["add image.gpu"]),
        (
            {"hardwareProfile": "small", "resources": {"requests": {"memory": "2Gi"}}},
            ["resources.requests.memory exceeds resources.limits.memory"],
        ),
        ({"autoscaling": {"maxReplicas": 3}}, ["resources.requests.cpu", "metric.type"]),
    ],
)
def test_what_contradicts_itself_is_refused(make, spec, words):
    sentence = refusal(make(**spec))
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    "spec",
    [
        {"resources": {"requests": {"cpu": 1}}},
        {"resources": {"limits": {"cpu": 1}}},  # a request follows from a limit
        {"hardwareProfile": "counted"},
    ],
)
def test_use_of_cpu_is_measured_against_any_request(make, spec):
    resolve(make(autoscaling={"maxReplicas": 3}, **spec), PROFILES)


def test_other_metrics_need_no_request(make):
    metric = {"type": "runningRequests", "target": 2}
    resolve(make(autoscaling={"maxReplicas": 3, "metric": metric}), PROFILES)


@pytest.mark.parametrize(
    ("model", "modes", "pinned"),
    [
        (VOLUME, ["ReadWriteOnce"], True),
        (VOLUME, ["ReadWriteOncePod"], True),
        (VOLUME, ["ReadOnlyMany"], False),
        (VOLUME, ["ReadWriteOnce", "ReadOnlyMany"], False),
        (CACHE, ["ReadWriteOnce"], True),
        (CACHE, ["ReadOnlyMany"], True),
        (CACHE, ["ReadWriteMany"], False),
        (VOLUME, [], False),
        ({}, ["ReadWriteOnce"], False),
    ],
)
def test_a_claim_for_one_node_holds_the_pods_there(make, model, modes, pinned):
    assert is_pinned(make(model=model).spec, modes) is pinned


@pytest.mark.parametrize(
    "spec",
    [
        {"replicas": 2},
        {"autoscaling": {"maxReplicas": 2, "metric": {"type": "runningRequests", "target": 1}}},
    ],
)
def test_many_pods_need_a_claim_for_many_nodes(make, spec):
    cr = make(model=VOLUME, **spec)
    with pytest.raises(
        InvalidSpecError, match=r"models .*ReadWriteOnce.* 2 replicas.*ReadWriteMany"
    ):
        check_claim(cr, ["ReadWriteOnce"])
    check_claim(cr, ["ReadWriteMany"])
    check_claim(cr, [])


def test_one_pod_takes_any_claim(make):
    check_claim(make(model=VOLUME), ["ReadWriteOncePod"])
