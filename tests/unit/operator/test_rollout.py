"""When an old pod goes first: for a GPU that its end brings, and for no other reason."""

import pytest

from llm_operator.hardware import NodeFacts
from llm_operator.pods import Diagnosis, Pod
from llm_operator.rollout import replaces_in_place

GPU = "nvidia.com/gpu"
QUOTA = (
    'pods "x-5" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1,'
    " used: requests.nvidia.com/gpu=1, limited: requests.nvidia.com/gpu=1"
)
IN_PLACE = {"spec": {"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}}}


def pod(template="old", *, node="gpu-1", devices=(GPU,), reason=None, message="", revision=""):
    return Pod(
        name=template,
        uid=template,
        address=None,
        created="",
        scheduled=None,
        started=None,
        ready_since=None,
        template=template,
        ready=reason is None,
        counts=True,
        diagnosis=reason and Diagnosis(reason, message, failure=True),
        node=node,
        devices=frozenset(devices),
        revision=revision or template,
    )


def waiting(message="0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", **fields):
    return pod("new", node=None, reason="Unschedulable", message=message, **fields)


def node(name="gpu-1", *, gpus=1, **labels):
    return NodeFacts(name, labels, {GPU: str(gpus)}, taints=(), schedulable=True)


def failing(message):
    condition = {"type": "ReplicaFailure", "status": "True", "message": message}
    return {"status": {"conditions": [condition]}}


@pytest.fixture
def decide(make):
    def decide(pods, *, live=None, pinned=False, nodes=None, target="gpu", **spec):
        return replaces_in_place(
            make(target=target, **spec),
            target=target,
            template="new",
            pods=pods,
            live=live,
            pinned=pinned,
            nodes=nodes,
        )

    return decide


def test_the_old_pod_goes_first_where_it_holds_the_gpu_the_new_one_waits_for(decide):
    assert decide([pod(), waiting()])
    assert decide([pod(), waiting()], nodes=[node()])


@pytest.mark.parametrize(
    "pods",
    [
        [pod()],
        [pod("new")],
        [pod(), pod("new", reason="ModelLoading")],
        [pod(), waiting("0/1 nodes are available: 1 Insufficient memory.")],
        [waiting()],
    ],
    ids=["nothing new yet", "nothing old", "the new one loads", "memory", "the first pod"],
)
def test_a_new_pod_goes_first_where_no_gpu_is_missed(decide, pods):
    assert not decide(pods, nodes=[node()])


def test_a_pod_without_gpu_serves_until_there_is_one(decide):
    assert not decide([pod(devices=()), waiting()])
    assert not decide([pod(devices=("amd.com/gpu",)), waiting()])
    assert not decide([pod(node=None), waiting()]), "what has no node holds no GPU"


def test_a_pod_serves_on_if_the_new_one_could_not_run_in_its_place(decide):
    assert not decide([pod(), waiting()], nodes=[node(gpus=2)], gpu={"count": 4})
    assert not decide(
        [pod(), waiting()],
        nodes=[node(**{"nvidia.com/gpu.product": "T4"})],
        gpu={"products": ["L4"]},
    )
    assert decide(
        [pod(), waiting()],
        nodes=[node(**{"nvidia.com/gpu.product": "L4"})],
        gpu={"products": ["L4"]},
    )


def test_a_node_that_is_not_known_counts_as_a_place(decide):
    assert decide([pod(node="new"), waiting()], nodes=[node()])


def test_other_resources_have_other_words(decide):
    mig = "nvidia.com/mig-1g.10gb"
    pods = [pod(devices=(mig,)), waiting(f"1 Insufficient {mig}.", devices=(mig,))]
    assert decide(pods, gpu={"resourceName": mig})
    assert not decide(pods)


def test_a_restart_by_hand_passes_on_the_gpu_too(decide):
    assert decide([pod("new", revision="1"), waiting(revision="2")])
    begun = [pod("new", revision="1"), pod("new", revision="2", reason="ModelLoading")]
    assert decide(begun, live=IN_PLACE)


def test_one_more_replica_waits_for_a_gpu(decide):
    assert not decide([pod("new"), waiting()])


def test_a_quota_on_the_gpu_counts_as_none_free(decide):
    assert decide([pod()], live=failing(QUOTA))
    assert not decide([pod()], live=failing(QUOTA.replace(GPU, "memory")))
    assert not decide([pod()], live=failing("violates PodSecurity"))
    assert not decide([pod(devices=())], live=failing(QUOTA))


def test_a_rollout_ends_as_it_began_and_the_next_one_begins_anew(decide):
    assert decide([pod(), pod("new", reason="ModelLoading")], live=IN_PLACE)
    assert not decide([pod("new")], live=IN_PLACE)


def test_what_the_user_chose_stands(decide):
    for strategy in ("RollingUpdate", "Recreate"):
        assert not decide([pod(), waiting()], rollout={"strategy": strategy}, pinned=True)


def test_a_volume_for_one_node_alone_is_left_before_it_is_taken(decide):
    assert decide([], pinned=True, target="cpu")


def test_on_cpu_nothing_is_waited_for(decide):
    assert not decide([pod(), waiting()], target="cpu")
