"""What a hardware profile may say, and how it joins what a spec says."""

import pytest

from llm_operator.profiles import HardwareProfile, ProfileError, merged

NODES = {
    "requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]
    }
}
APART = {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "rack"}]}
RACKS = {"topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}
WHOLE = {
    "gpu": {"count": 2, "resourceName": "nvidia.com/mig-1g.10gb", "runtimeClassName": "nvidia"},
    "resources": {"requests": {"cpu": 2}, "limits": {"cpu": 4, "memory": "8Gi"}},
    "nodeSelector": {"pool": "gpu", "zone": "a"},
    "tolerations": [{"key": "team", "operator": "Exists"}],
    "affinity": {"nodeAffinity": NODES, "podAntiAffinity": APART},
    "topologySpreadConstraints": [RACKS],
    "priorityClassName": "high",
    "schedulerName": "packer",
}


def both(make, **spec):
    return merged(make(**spec).spec, HardwareProfile.read("p", WHOLE))


def dumped(part):
    return part.model_dump(mode="json", by_alias=True, exclude_none=True)


def test_a_profile_says_all_that_the_spec_leaves_open(make):
    spec = both(make)
    assert dumped(spec.gpu) == WHOLE["gpu"]
    assert dumped(spec.resources) == WHOLE["resources"]
    assert spec.node_selector == WHOLE["nodeSelector"]
    assert [dumped(each) for each in spec.tolerations] == WHOLE["tolerations"]
    assert dumped(spec.affinity) == WHOLE["affinity"]
    (spread,) = spec.topology_spread_constraints
    assert spread.topology_key == "rack"
    assert (spec.priority_class_name, spec.scheduler_name) == ("high", "packer")


def test_every_field_of_a_profile_reaches_the_spec(make):
    assert HardwareProfile.read("p", WHOLE).model_fields_set == set(HardwareProfile.model_fields)
    before, after = make().spec, both(make)
    same = {
        name
        for name in HardwareProfile.model_fields
        if getattr(before, name) == getattr(after, name)
    }
    assert same == set()


def test_an_empty_profile_changes_nothing(make):
    for spec in (make().spec, make(**WHOLE).spec):
        assert merged(spec, HardwareProfile.read("p", {})) == spec


def test_the_gpus_of_the_spec_are_taken_as_a_whole(make):
    spec = both(make, gpu={"count": 4})
    assert dumped(spec.gpu) == {"count": 4, "resourceName": "nvidia.com/gpu"}


def test_amounts_and_labels_are_taken_one_by_one(make):
    spec = both(make, resources={"limits": {"cpu": 3}}, nodeSelector={"zone": "b"})
    assert spec.resources.requests == {"cpu": 2}
    assert spec.resources.limits == {"cpu": 3, "memory": "8Gi"}
    assert spec.node_selector == {"pool": "gpu", "zone": "b"}


def test_tolerations_add_up(make):
    spec = both(make, tolerations=[{"key": "mine", "operator": "Exists"}])
    assert [each.key for each in spec.tolerations] == ["team", "mine"]


def test_affinity_is_taken_by_kind(make):
    spec = both(make, affinity={"podAntiAffinity": {}, "podAffinity": APART})
    assert dumped(spec.affinity)["nodeAffinity"] == NODES
    assert spec.affinity.pod_affinity == APART
    own = {"requiredDuringSchedulingIgnoredDuringExecution": []}
    assert both(make, affinity={"podAntiAffinity": own}).affinity.pod_anti_affinity == own


def test_no_spread_is_a_wish_too(make):
    assert both(make, topologySpreadConstraints=[]).topology_spread_constraints == ()


def test_names_of_the_spec_go_first(make):
    spec = both(make, priorityClassName="low", schedulerName="mine")
    assert (spec.priority_class_name, spec.scheduler_name) == ("low", "mine")


def test_a_fraction_as_values_files_hold_it_is_a_quantity():
    profile = HardwareProfile.read("p", {"resources": {"limits": {"cpu": 0.5, "memory": 1.5e9}}})
    assert profile.resources.limits == {"cpu": "0.5", "memory": "1500000000.0"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (None, "write its fields as an object"),
        ([], "write its fields as an object"),
        ("gpu", "write its fields as an object"),
        ({"gpus": 1}, "gpus is not a field of a profile"),
        ({"replicas": 1}, "replicas is not a field of a profile"),
        ({"gpu": {"counts": 1}}, "gpu.counts is not a field of a profile"),
        ({"tolerations": [{"opertor": "Exists"}]}, "tolerations[].opertor is not a field"),
        ({"affinity": {"nodeAffinity": {"x": 1}}}, "affinity.nodeAffinity.x is not a field"),
        ({"gpu": {"count": 0}}, "gpu.count: Input should be greater than or equal to 1"),
        ({"gpu": {"count": "many"}}, "gpu.count: Input should be a valid integer"),
        ({"gpu": {"minMemory": True}}, "gpu.minMemory: 'True' is not a quantity"),
        ({"resources": {"limits": {"memory": "lots"}}}, "resources.limits.memory: 'lots' is not"),
        ({"nodeSelector": {"pool": "a b"}}, "nodeSelector.pool: String should match"),
        ({"tolerations": {"key": "a"}}, "tolerations: Input should be a valid tuple"),
        ({"resources": {"limits": {"nvidia.com/gpu": 1}}}, "remove them from resources"),
        (
            {"gpu": {"resourceName": "a.b/npu"}, "resources": {"requests": {"a.b/npu": 1}}},
            "remove them from resources",
        ),
        (
            {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": "1500m"}}},
            "resources.requests.cpu exceeds resources.limits.cpu: lower the request",
        ),
        ({"tolerations": [{"effect": "NoSchedule"}]}, "set operator to Exists, or name a key"),
    ],
)
def test_what_no_profile_can_say_is_named(body, said):
    with pytest.raises(ProfileError) as caught:
        HardwareProfile.read("a100", body)
    assert str(caught.value).startswith("hardware profile a100: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "A100", "a 100", "a_100", "-a"])
def test_a_name_that_no_spec_could_have_is_refused(name):
    with pytest.raises(ProfileError, match="lower-case letters, digits, dashes and dots"):
        HardwareProfile.read(name, {})
