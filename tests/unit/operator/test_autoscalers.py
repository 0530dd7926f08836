"""Autoscalers scale the LLMDeployment, by the metric and within the bounds that the user names."""

import pytest

from llm_operator import api
from llm_operator.autoscalers import horizontal_pod_autoscaler, scaled_object

QUERY = {
    "type": "prometheus",
    "target": 4,
    "serverAddress": "http://prometheus:9090",
    "query": "sum(waiting)",
}
ITSELF = {"apiVersion": api.API_VERSION, "kind": api.KIND, "name": "smollm2"}


def hpa(cr):
    return horizontal_pod_autoscaler(cr)["spec"]


def test_without_autoscaling_there_is_no_autoscaler(make):
    assert horizontal_pod_autoscaler(make()) is None
    assert scaled_object(make()) is None


@pytest.mark.parametrize(
    ("metric", "by_hpa"),
    [(None, True), ({"type": "runningRequests", "target": 4}, True), (QUERY, False)],
)
def test_each_metric_has_one_autoscaler(make, metric, by_hpa):
    scaling = {"maxReplicas": 3, **({"metric": metric} if metric else {})}
    cr = make(autoscaling=scaling)
    assert (horizontal_pod_autoscaler(cr) is not None) is by_hpa
    assert (scaled_object(cr) is not None) is not by_hpa


@pytest.mark.parametrize("metric", [{"type": "cpu"}, QUERY])
def test_suspended_there_is_none(make, metric):
    cr = make(suspend=True, autoscaling={"maxReplicas": 3, "metric": metric})
    assert horizontal_pod_autoscaler(cr) is None
    assert scaled_object(cr) is None


@pytest.mark.parametrize(("target", "percent"), [(None, 80), (55, 55)])
def test_cpu_is_a_percentage_of_the_request(make, target, percent):
    metric = {"type": "cpu", **({"target": target} if target else {})}
    (rendered,) = hpa(make(autoscaling={"maxReplicas": 3, "metric": metric}))["metrics"]
    assert rendered["resource"]["name"] == "cpu"
    assert rendered["resource"]["target"] == {"type": "Utilization", "averageUtilization": percent}


@pytest.mark.parametrize(
    ("type_", "name"),
    [
        ("runningRequests", "vllm_num_requests_running"),
        ("waitingRequests", "vllm_num_requests_waiting"),
    ],
)
def test_requests_are_an_average_over_the_pods(make, type_, name):
    scaling = {"maxReplicas": 3, "metric": {"type": type_, "target": 7}}
    (metric,) = hpa(make(autoscaling=scaling))["metrics"]
    assert metric["pods"]["metric"]["name"] == name
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "7"}


def test_bounds_and_delay_are_those_of_the_spec(make):
    scaling = {"minReplicas": 2, "maxReplicas": 5, "scaleDownDelaySeconds": 60}
    spec = hpa(make(autoscaling=scaling))
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 5)
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 60
    assert spec["scaleTargetRef"] == ITSELF


def test_keda_scales_by_the_query_also_from_zero(make):
    scaling = {
        "minReplicas": 0,
        "maxReplicas": 5,
        "metric": QUERY,
        "scaleDownDelaySeconds": 60,
    }
    spec = scaled_object(make(autoscaling=scaling))["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (0, 5)
    assert spec["scaleTargetRef"] == ITSELF
    (trigger,) = spec["triggers"]
    assert trigger["type"] == "prometheus"
    assert trigger["metadata"] == {
        "serverAddress": "http://prometheus:9090",
        "query": "sum(waiting)",
        "threshold": "4",
    }
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 60


@pytest.mark.parametrize(("delay", "budget", "cooldown"), [(60, 600, 600), (900, 600, 900)])
def test_a_pod_that_comes_from_zero_is_not_stopped_while_it_loads(make, delay, budget, cooldown):
    scaling = {"maxReplicas": 5, "metric": QUERY, "scaleDownDelaySeconds": delay}
    cr = make(autoscaling=scaling, probes={"startupBudgetSeconds": budget})
    assert scaled_object(cr)["spec"]["cooldownPeriod"] == cooldown
