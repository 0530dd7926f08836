from llm_operator.cache import Cache, trimmed
from llm_operator.kube import DEPLOYMENT, SERVICE

KEY = ("models", "smollm2")


def body(version, **metadata):
    return {"metadata": {"resourceVersion": str(version), **metadata}}


def cache(*watched):
    return Cache({DEPLOYMENT: {KEY: list(watched)} if watched else {}, SERVICE: {}})


def test_what_the_watch_brought():
    assert cache().get(DEPLOYMENT, KEY) is None
    assert cache(body(3)).get(DEPLOYMENT, KEY) == body(3)
    assert cache(body(3)).keys(DEPLOYMENT) == [KEY]


def test_a_write_counts_until_the_watch_has_it():
    watched = {KEY: [body(9)]}
    seen = Cache({DEPLOYMENT: watched})
    seen.wrote(DEPLOYMENT, KEY, body(10))
    assert seen.get(DEPLOYMENT, KEY) == body(10)
    watched[KEY] = [body(11)]
    assert seen.get(DEPLOYMENT, KEY) == body(11)
    watched[KEY] = []
    del watched[KEY]
    assert seen.get(DEPLOYMENT, KEY) is None, "deleted after the watch had seen the write"


def test_a_deletion_seen_by_the_watch_ends_a_write():
    seen = cache()
    seen.wrote(DEPLOYMENT, KEY, body(10))
    seen.forget(DEPLOYMENT, KEY)
    assert seen.get(DEPLOYMENT, KEY) is None
    seen.forget(DEPLOYMENT, KEY)


def test_versions_are_numbers():
    seen = cache(body(10))
    seen.wrote(DEPLOYMENT, KEY, body(9))
    assert seen.get(DEPLOYMENT, KEY) == body(10)


def test_of_two_objects_of_one_name_the_newer_counts():
    assert cache(body(4, uid="old"), body(7, uid="new")).get(DEPLOYMENT, KEY) == body(7, uid="new")


def test_kinds_are_apart():
    seen = cache(body(3))
    assert seen.get(SERVICE, KEY) is None


def test_trimmed_drops_managed_fields_alone():
    assert trimmed({"metadata": {"name": "a", "managedFields": [1]}, "spec": 1}) == {
        "metadata": {"name": "a"},
        "spec": 1,
    }
