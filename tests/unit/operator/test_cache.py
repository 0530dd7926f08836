import copy
from functools import partial

from llm_operator.cache import Cache, owner_of
from llm_operator.hardware import NodeFacts
from llm_operator.names import INSTANCE_LABEL
from llm_operator.resources import DEPLOYMENT, LLM_DEPLOYMENT, NETWORK_POLICY, NODE, POD, SERVICE

KEY = ("models", "smollm2")


def body(version, *, name="smollm2", namespace="models", parts=None, **metadata):
    return {
        "metadata": {
            "namespace": namespace,
            "name": name,
            "resourceVersion": str(version),
            **metadata,
        },
        **(parts or {}),
    }


def deployment(version, *, generation, **parts):
    return body(version, uid="u", generation=generation, parts=parts)


def pod(version, name="smollm2-a", instance="smollm2"):
    return body(version, name=name, labels={INSTANCE_LABEL: instance})


def test_the_newest_state_counts_whoever_brings_it():
    cache = Cache()
    assert cache.get(DEPLOYMENT, KEY) is None
    assert cache.put(DEPLOYMENT, body(9))
    assert not cache.put(DEPLOYMENT, body(9)), "the watch's echo of an own write is no news"
    assert cache.put(SERVICE, body(9, labels={"a": "1"}))
    assert cache.put(SERVICE, body(10, labels={"a": "2"})), "versions are numbers"
    assert not cache.put(SERVICE, body(8, labels={"a": "3"}))
    assert cache.get(SERVICE, KEY) == body(10, labels={"a": "2"})
    assert cache.get(NETWORK_POLICY, KEY) is None


def test_what_is_read_of_an_object_is_kept():
    spec, status = {"replicas": 1}, {"conditions": [{"type": "Ready", "status": "True"}]}
    whole = body(
        1,
        uid="u",
        generation=2,
        ownerReferences=[{"uid": "o"}],
        annotations={"a": "1"},
        parts={"kind": "LLMDeployment", "spec": spec, "status": status},
    )
    last_applied = {"a": "1", "kubectl.kubernetes.io/last-applied-configuration": "{}"}
    given = body(1, **whole["metadata"] | {"annotations": last_applied, "managedFields": [1]})
    cache = Cache()
    cache.put(LLM_DEPLOYMENT, {**whole, "metadata": given["metadata"]})
    assert cache.get(LLM_DEPLOYMENT, KEY) == whole


def test_of_a_pod_what_its_diagnosis_reads_is_kept():
    server = {
        "name": "server",
        "startupProbe": {"periodSeconds": 1, "failureThreshold": 600},
        "env": [{"name": "LLM_MODEL_SOURCE", "value": "hub"}],
        "resources": {"limits": {"memory": "1Gi"}},
    }
    spec = {"nodeName": "n", "containers": [server]}
    status = {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [{"name": "server"}]}
    metadata = {"labels": {INSTANCE_LABEL: "smollm2"}, "uid": "u", "creationTimestamp": "t"}
    wanted = body(1, name="a", parts={"spec": spec, "status": status}, **metadata)
    never_read = {"securityContext": {"runAsUser": 1}}
    whole = {"containers": [server | never_read], "volumes": [{"name": "tmp"}], **never_read}
    metadata["annotations"] = {"long": "text"}
    cache = Cache()
    parts = {"spec": spec | whole, "status": status}
    cache.put(POD, body(1, name="a", parts=parts, **metadata))
    assert list(cache.pods(KEY)) == [wanted]


def test_a_change_of_what_nobody_reads_is_no_news():
    cache = Cache()
    waiting = {"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated"}
    late = waiting | {"reason": "ProgressDeadlineExceeded"}
    put = partial(cache.put, DEPLOYMENT)
    assert put(deployment(1, generation=1, spec={}, status={"conditions": [waiting]}))
    counted = {"replicas": 1, "conditions": [waiting | {"lastUpdateTime": "now"}]}
    assert not put(deployment(2, generation=1, spec={}, status=counted))
    assert put(deployment(3, generation=1, spec={}, status={"conditions": [late]}))
    assert cache.get(DEPLOYMENT, KEY)["status"] == {"conditions": [late]}
    assert not cache.put(DEPLOYMENT, deployment(2, generation=1, spec={})), (
        "older than what is seen"
    )


def test_the_spec_of_a_deployment_is_read_anew_when_somebody_changed_it():
    cache = Cache()
    cache.put(DEPLOYMENT, deployment(1, generation=1, spec={"replicas": 1}))
    cache.put(DEPLOYMENT, deployment(2, generation=1, spec={"replicas": 1}, status={}))
    assert cache.put(DEPLOYMENT, deployment(3, generation=2, spec={"replicas": 5}))
    assert cache.get(DEPLOYMENT, KEY)["spec"] == {"replicas": 5}
    anew = body(4, uid="new", generation=2, parts={"spec": {"replicas": 7}})
    assert cache.put(DEPLOYMENT, anew), "another object of that name, of as many changes"
    assert cache.get(DEPLOYMENT, KEY)["spec"] == {"replicas": 7}


def test_an_object_that_is_known_as_it_is_needs_no_second_copy():
    cache = Cache()
    given = deployment(1, generation=1, spec={"replicas": 1}, status={"replicas": 1})
    assert cache.trim(DEPLOYMENT, given) == {**given, "status": {"conditions": []}}
    cache.put(DEPLOYMENT, given)
    assert cache.trim(DEPLOYMENT, copy.deepcopy(given)) is cache.get(DEPLOYMENT, KEY)
    newer = deployment(2, generation=2, spec={"replicas": 2})
    assert cache.trim(DEPLOYMENT, newer) == newer


def test_a_given_object_is_not_changed():
    cache = Cache()
    given = deployment(1, generation=1, spec={"replicas": 1}, status={"replicas": 1})
    before = copy.deepcopy(given)
    cache.put(DEPLOYMENT, given)
    assert given == before


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
