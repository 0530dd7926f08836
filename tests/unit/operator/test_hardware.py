import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_operator import hardware
from llm_operator.api import Gpu, LLMDeploymentSpec
from llm_operator.hardware import Decision, NodeFacts

TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


def spec(**fields):
    return LLMDeploymentSpec.model_validate({"model": {"id": "a/b"}, **fields})


def node(name="gpu-1", *, gpus=1, labels=None, taints=(), schedulable=True):
    return NodeFacts(
        name=name,
        labels=labels or {},
        allocatable={"nvidia.com/gpu": str(gpus)} if gpus else {},
        taints=taints,
        schedulable=schedulable,
    )


def choose(spec, *, nodes=(), previous=None, gpu_image=True):
    return hardware.choose(spec, previous=previous, gpu_image=gpu_image, nodes=nodes)


def test_a_named_target_is_taken_whatever_the_nodes():
    assert choose(spec(target="gpu")) == Decision("gpu", "target is gpu")
    assert choose(spec(target="cpu"), nodes=[node()]) == Decision("cpu", "target is cpu")


def test_auto_takes_gpu_when_a_gpu_is_asked_for():
    assert choose(spec(gpu={"minMemory": "40G"})).target == "gpu"


def test_auto_takes_gpu_when_a_node_offers_one_and_names_it():
    decision = choose(spec(), nodes=[node("b"), node("a", taints=(TAINT,))])
    assert decision == Decision("gpu", "auto: node a offers nvidia.com/gpu")


NODE_AFFINITY = "requiredDuringSchedulingIgnoredDuringExecution"


@pytest.mark.parametrize(
    ("wanted", "there"),
    [
        ({}, node(gpus=0)),
        ({}, node(schedulable=False)),
        ({}, node(taints=({"key": "team", "effect": "NoExecute"},))),
        ({"nodeSelector": {"pool": "a"}}, node(labels={"pool": "b"})),
        (
            {
                "affinity": {
                    "nodeAffinity": {
                        NODE_AFFINITY: {
                            "nodeSelectorTerms": [
                                {"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}
                            ]
                        }
                    }
                }
            },
            node(labels={"gpu": "yes"}),
        ),
    ],
    ids=["no gpu", "cordoned", "other taint", "other pool", "affinity"],
)
def test_auto_takes_cpu_when_no_node_fits(wanted, there):
    decision = choose(spec(**wanted), nodes=[there])
    assert decision.target == "cpu"
    assert "no schedulable node that fits" in decision.reason


@pytest.mark.parametrize(
    ("term", "met"),
    [
        ({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["gpu-1"]}]}, True),
        ({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["gpu-2"]}]}, False),
        ({"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["a"]}]}, True),
        (
            {
                "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["gpu-1"]}],
                "matchExpressions": [{"key": "pool", "operator": "Exists"}],
            },
            False,
        ),
        ({}, False),
    ],
    ids=["named", "another named", "not another", "one of two", "nothing said"],
)
def test_a_node_meets_all_of_a_term(term, met):
    affinity = {"nodeAffinity": {NODE_AFFINITY: {"nodeSelectorTerms": [term]}}}
    assert choose(spec(affinity=affinity), nodes=[node()]).target == ("gpu" if met else "cpu")


def test_a_taint_that_the_spec_tolerates_does_not_hinder():
    taints = (TAINT, {"key": "team", "value": "llm", "effect": "NoSchedule"})
    tolerations = [{"key": "team", "operator": "Equal", "value": "llm"}]
    assert choose(spec(tolerations=tolerations), nodes=[node(taints=taints)]).target == "gpu"
    assert choose(spec(), nodes=[node(taints=taints)]).target == "cpu"


def test_auto_takes_cpu_without_a_gpu_image_or_a_look_at_nodes():
    assert choose(spec(), nodes=[node()], gpu_image=False).target == "cpu"
    assert choose(spec(), nodes=None).target == "cpu"


@pytest.mark.parametrize("nodes", [[], [node()]], ids=["no node left", "a node came"])
@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_a_choice_made_by_nodes_stays_when_they_come_and_go(target, nodes):
    previous = Decision(target, "auto: for a reason")
    assert choose(spec(), previous=previous, nodes=nodes) == previous


def test_a_choice_that_the_spec_made_ends_with_it():
    asked = choose(spec(gpu={"count": 2}))
    assert choose(spec(), previous=asked, nodes=[]).target == "cpu"


def test_going_from_a_named_target_to_auto_restarts_nothing():
    decision = choose(spec(), previous=Decision("gpu", "target is gpu"), nodes=[])
    assert decision == Decision("gpu", "auto: stays on gpu, where it ran before")


@given(st.permutations([node("a"), node("b"), node("c", gpus=0)]))
def test_the_order_of_nodes_does_not_matter(nodes):
    assert choose(spec(), nodes=nodes).reason == "auto: node a offers nvidia.com/gpu"


def test_facts_of_a_node():
    facts = NodeFacts.of(
        {
            "metadata": {"name": "n", "labels": {"a": "b"}},
            "spec": {"taints": [TAINT], "unschedulable": True},
            "status": {"allocatable": {"cpu": "4", "nvidia.com/gpu": "2"}},
        }
    )
    assert facts == node("n", gpus=2, labels={"a": "b"}, taints=(TAINT,), schedulable=False)


@pytest.mark.parametrize(
    ("resource", "key"),
    [
        ("nvidia.com/gpu", "nvidia.com/gpu"),
        ("nvidia.com/mig-1g.10gb", "nvidia.com/gpu"),
        ("amd.com/gpu", "amd.com/gpu"),
        ("example.com/npu", "example.com/npu"),
    ],
)
def test_the_usual_taint_of_the_vendor_is_tolerated(resource, key):
    assert hardware.gpu_toleration(Gpu(resource_name=resource)).key == key


@pytest.mark.parametrize(
    ("asked", "label", "fits"),
    [("79Gi", 81559, True), ("80Gi", 81559, False), ("80G", 81559, True), ("40Gi", 40960, True)],
)
def test_min_memory_compares_with_the_label_in_mebibytes(asked, label, fits):
    (requirement,) = hardware.gpu_requirements(Gpu(min_memory=asked))
    assert requirement["key"] == "nvidia.com/gpu.memory"
    assert requirement["operator"] == "Gt"
    assert (label > int(requirement["values"][0])) is fits


def test_requirements_go_into_every_term_for_terms_are_alternatives():
    zone = {"key": "zone", "operator": "In", "values": ["a"]}
    own = {
        NODE_AFFINITY: {
            "nodeSelectorTerms": [
                {"matchExpressions": [zone]},
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]},
            ]
        },
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1}],
    }
    product = {"key": "p", "operator": "Exists"}
    combined = hardware.node_affinity(own, [product])
    first, second = combined[NODE_AFFINITY]["nodeSelectorTerms"]
    assert first == {"matchExpressions": [zone, product]}
    assert second["matchExpressions"] == [product]
    assert "matchFields" in second
    assert combined["preferredDuringSchedulingIgnoredDuringExecution"] == [{"weight": 1}]
    assert "matchExpressions" not in own[NODE_AFFINITY]["nodeSelectorTerms"][1]


def test_without_requirements_the_users_affinity_is_left_alone():
    assert hardware.node_affinity({"x": 1}, []) == {"x": 1}
    assert hardware.node_affinity(None, []) is None


@pytest.mark.parametrize(
    ("operator", "values", "value", "met"),
    [
        ("In", ["a"], "a", True),
        ("In", ["a"], None, False),
        ("NotIn", ["a"], None, True),
        ("Exists", [], "a", True),
        ("Gt", ["3"], "4", True),
        ("Lt", ["3"], "4", False),
        ("Gt", ["3"], "many", False),
        ("Near", ["3"], "4", False),
    ],
)
def test_node_affinity_operators(operator, values, value, met):
    term = {"matchExpressions": [{"key": "k", "operator": operator, "values": values}]}
    affinity = {"nodeAffinity": {NODE_AFFINITY: {"nodeSelectorTerms": [term]}}}
    labels = {} if value is None else {"k": value}
    target = choose(spec(affinity=affinity), nodes=[node(labels=labels)]).target
    assert target == ("gpu" if met else "cpu")
