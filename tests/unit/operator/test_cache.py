from llm_operator.cache import Cache, owner_of
from llm_operator.hardware import NodeFacts
from llm_operator.kube import DEPLOYMENT, LLM_DEPLOYMENT, NODE, POD, SERVICE

KEY = ("models", "smollm2")


def body(version, *, name="smollm2", namespace="models", **metadata):
    return {
        "metadata": {
            "namespace": namespace,
            "name": name,
            "resourceVersion": str(version),
            **metadata,
        }
    }


def pod(version, name="smollm2-a", instance="smollm2"):
    return body(version, name=name, labels={"app.kubernetes.io/instance": instance})


def test_the_newest_state_counts_whoever_brings_it():
    cache = Cache()
    assert cache.get(DEPLOYMENT, KEY) is None
    assert cache.put(DEPLOYMENT, body(9))
    assert not cache.put(DEPLOYMENT, body(9)), "the watch's echo of an own write is no news"
    assert cache.put(DEPLOYMENT, body(10)), "versions are numbers"
    assert not cache.put(DEPLOYMENT, body(8))
    assert cache.get(DEPLOYMENT, KEY) == body(10)
    assert cache.get(SERVICE, KEY) is None


def test_managed_fields_are_not_kept():
    cache = Cache()
    cache.put(DEPLOYMENT, body(1, managedFields=[1]))
    assert cache.get(DEPLOYMENT, KEY) == body(1)


def test_what_is_deleted_is_gone():
    cache = Cache()
    cache.put(DEPLOYMENT, body(3))
    assert cache.remove(DEPLOYMENT, body(4))
    assert cache.get(DEPLOYMENT, KEY) is None
    assert not cache.remove(DEPLOYMENT, body(4))


def test_the_deletion_of_a_namesake_that_was_made_anew_since_is_no_news():
    cache = Cache()
    cache.put(DEPLOYMENT, body(7, uid="new"))
    assert not cache.remove(DEPLOYMENT, body(5, uid="old"))
    assert cache.get(DEPLOYMENT, KEY) == body(7, uid="new")


def test_pods_are_found_by_their_owner():
    cache = Cache()
    cache.put(POD, pod(1, "a"))
    cache.put(POD, pod(2, "b"))
    cache.put(POD, pod(3, "c", instance="other"))
    assert [each["metadata"]["name"] for each in cache.pods(KEY)] == ["a", "b"]
    cache.put(POD, pod(4, "a"))
    cache.remove(POD, pod(5, "b"))
    assert list(cache.pods(KEY)) == [pod(4, "a")]
    cache.remove(POD, pod(6, "a"))
    assert not list(cache.pods(KEY))
    assert owner_of(POD, pod(1, instance="other")) == ("models", "other")
    assert owner_of(DEPLOYMENT, body(1)) == KEY


def test_nodes_are_kept_as_facts():
    cache = Cache()
    node = {"metadata": {"name": "n", "resourceVersion": "1"}, "status": {"images": ["big"]}}
    assert cache.put(NODE, node)
    assert list(cache.nodes()) == [NodeFacts("n", {}, {}, (), schedulable=True)]
    assert cache.remove(NODE, {"metadata": {"name": "n", "resourceVersion": "2"}})
    assert not list(cache.nodes())


def test_a_list_brings_what_the_watch_missed():
    cache = Cache()
    cache.put(LLM_DEPLOYMENT, body(1, name="gone"))
    cache.put(LLM_DEPLOYMENT, body(2, name="same"))
    cache.put(LLM_DEPLOYMENT, body(9, name="after-the-list"))
    listed = [body(2, name="same"), body(5, name="new")]
    concerned = cache.replace(LLM_DEPLOYMENT, "", listed, at=6)
    assert concerned == {("models", "gone"), ("models", "new")}
    names = {name for _, name in cache.llm_deployments()}
    assert names == {"same", "new", "after-the-list"}


def test_the_list_of_a_namespace_says_nothing_of_others():
    cache = Cache()
    cache.put(SERVICE, body(1, namespace="other"))
    assert cache.replace(SERVICE, "models", [], at=6) == set()
    assert cache.get(SERVICE, ("other", "smollm2"))


def test_a_pod_that_a_list_misses_concerns_its_owner():
    cache = Cache()
    cache.put(POD, pod(1))
    assert cache.replace(POD, "models", [], at=6) == {KEY}
    assert not list(cache.pods(KEY))
