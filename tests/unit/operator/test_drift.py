import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_operator import drift

SCALARS = st.one_of(st.integers(), st.booleans(), st.text(min_size=1, max_size=5))
OBJECTS = st.recursive(
    SCALARS,
    lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=4),
    max_leaves=12,
).filter(lambda value: isinstance(value, dict))


@given(OBJECTS)
def test_an_object_matches_itself(wanted):
    assert drift.matches(wanted, copy.deepcopy(wanted))


@given(OBJECTS, st.dictionaries(st.text("xyz", min_size=1, max_size=2), SCALARS))
def test_fields_of_others_do_not_matter(wanted, extra):
    assert drift.matches(wanted, extra | wanted)


@given(OBJECTS.filter(bool), st.data())
def test_a_changed_field_is_seen(wanted, data):
    live = copy.deepcopy(wanted)
    name = data.draw(st.sampled_from(sorted(live)))
    live[name] = ["something else"]
    assert not drift.matches(wanted, live)


@pytest.mark.parametrize(
    ("wanted", "live", "same"),
    [
        ({"limits": {"cpu": "2000m"}}, {"limits": {"cpu": "2"}}, True),
        ({"limits": {"memory": "1024Mi"}}, {"limits": {"memory": "1Gi", "cpu": "1"}}, True),
        ({"limits": {"cpu": "2"}}, {"limits": {"cpu": "3"}}, False),
        ({"limits": {"cpu": "2"}}, {"limits": {}}, False),
        ({"labels": {"a": "1000m"}}, {"labels": {"a": "1"}}, False),
        ({"value": ""}, {}, True),
        ({"value": "x"}, {}, False),
        ({"podAffinity": {"labelSelector": None}}, {"podAffinity": {}}, True),
        ({"replicas": 0}, {"replicas": 0}, True),
        ({"replicas": 0}, {}, True),
    ],
)
def test_what_the_api_server_rewrites(wanted, live, same):
    assert drift.matches(wanted, live) is same


def test_lists_of_named_items_are_compared_by_name():
    wanted = [{"name": "a", "value": "1"}, {"name": "b", "value": "2"}]
    live = [{"name": "b", "value": "2"}, {"name": "added"}, {"name": "a", "value": "1"}]
    assert drift.matches(wanted, live)
    assert not drift.matches(wanted, live[:2])


def test_other_lists_are_compared_as_a_whole():
    assert drift.matches(["ALL"], ["ALL"])
    assert not drift.matches(["ALL"], ["ALL", "NET_RAW"])


@pytest.mark.parametrize(
    ("wanted", "live"),
    [
        ({"selector": {"app": "a"}}, {"selector": {"app": "a", "pod": "none"}}),
        (
            {"podSelector": {"matchLabels": {"app": "a"}}},
            {"podSelector": {"matchLabels": {"app": "a"}, "matchExpressions": [{"key": "k"}]}},
        ),
        (
            {"ingress": [{"ports": [{"port": 1}]}]},
            {"ingress": [{"ports": [{"port": 1}], "from": []}]},
        ),
        ({"egress": []}, {"egress": [{}]}),
    ],
)
def test_one_word_more_in_a_selector_or_a_rule_is_seen(wanted, live):
    assert not drift.matches(wanted, live)
    assert drift.matches(live, live)


def test_what_the_api_server_adds_to_a_rule_is_not_seen():
    wanted = {"egress": [{"ports": [{"port": 53}]}]}
    assert drift.matches(wanted, {"egress": [{"ports": [{"port": 53, "protocol": "TCP"}]}]})
