"""What pods read when they start, and a digest that tells a change of it and nothing else."""

import copy

import pytest

from llm_operator.references import Reference, combined, digests, lacking, references

SECRET = {
    "metadata": {"name": "s", "uid": "u-1", "resourceVersion": "7"},
    "data": {"token": "aGVsbG8=", "other": "eA=="},
}


def changed(**parts):
    return {**copy.deepcopy(SECRET), **parts}


def digest(body, key="token"):
    return combined([(Reference("Secret", "s", key), body and digests(body))])


def test_everything_that_is_read_at_start_is_found(make):
    cr = make(
        server={
            "env": [
                {"name": "A", "value": "plain"},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "b"}}},
                {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
                {"name": "D", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            ],
            "envFrom": [{"secretRef": {"name": "s"}}, {"configMapRef": {"name": "c"}}],
            "apiKeySecret": {"name": "keys", "key": "keys"},
        },
        model={"source": {"hub": {"tokenSecret": {"name": "hub", "key": "token"}}}},
    )
    assert list(references(cr.spec)) == [
        Reference("Secret", "s", "b"),
        Reference("ConfigMap", "c", "k"),
        Reference("Secret", "s", None),
        Reference("ConfigMap", "c", None),
        Reference("Secret", "hub", "token"),
    ]


def test_pods_that_read_nothing_have_no_digest(make):
    assert combined([(each, {}) for each in references(make().spec)]) is None


def test_a_changed_value_is_told(make):
    other = changed(data={"token": "aGVsbG8h", "other": "eA=="})
    assert digest(other) != digest(SECRET)


@pytest.mark.parametrize(
    "body",
    [
        changed(metadata={**SECRET["metadata"], "resourceVersion": "8", "labels": {"a": "b"}}),
        changed(data={"token": "aGVsbG8=", "other": "eQ=="}),
        changed(data={"other": "eA==", "token": "aGVsbG8="}),
        changed(type="Opaque", immutable=True),
    ],
    ids=["metadata", "a key nobody reads", "order", "other fields"],
)
def test_what_does_not_reach_the_pods_is_not_told(body):
    assert digest(body) == digest(SECRET)


def test_with_all_keys_every_key_counts():
    assert digest(changed(data={"token": "aGVsbG8="}), key=None) != digest(SECRET, key=None)
    renamed = changed(data={"token2": "aGVsbG8=", "other": "eA=="})
    assert digest(renamed, key=None) != digest(SECRET, key=None)


def test_what_appears_and_what_is_made_anew_is_told():
    assert len({digest(None), digest(SECRET), digest(changed(metadata={"uid": "u-2"}))}) == 3


def test_binary_data_counts():
    one, other = ({"metadata": {"uid": "u"}, "binaryData": {"k": value}} for value in ("YQ", "Yg"))
    assert digest(one, key="k") != digest(other, key="k")


def test_equal_values_in_different_objects_do_not_look_equal():
    other = changed(metadata={"name": "other", "uid": "u-9"})
    assert not set(digests(SECRET).values()) & set(digests(other).values())


def test_nothing_of_a_value_is_in_its_digest():
    assert "hello" not in str(digests(SECRET))
    assert "aGVsbG8" not in str(digests(SECRET))
    assert all(len(value) == 10 for value in digests(SECRET).values())


@pytest.mark.parametrize(
    ("key", "optional", "keys", "lacks"),
    [
        ("a", False, {"a": "1"}, False),
        ("a", False, {"b": "1"}, True),
        ("a", False, None, True),
        (None, False, {}, False),
        (None, False, None, True),
        ("a", True, {"b": "1"}, False),
        ("a", True, None, False),
        (None, True, None, False),
    ],
)
def test_pods_do_not_start_without_what_is_not_optional(key, optional, keys, lacks):
    assert lacking([(Reference("Secret", "s", key, optional=optional), keys)]) == lacks


def test_optional_is_taken_from_the_spec(make):
    key = {"name": "s", "key": "k"}
    cr = make(
        server={
            "env": [
                {"name": "A", "valueFrom": {"secretKeyRef": {**key, "optional": True}}},
                {"name": "B", "valueFrom": {"configMapKeyRef": key}},
            ],
            "envFrom": [{"secretRef": {"name": "s", "optional": True}}],
        }
    )
    assert [each.optional for each in references(cr.spec)] == [True, False, True]
