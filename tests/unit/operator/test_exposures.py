"""Who reaches the pods and whom they reach, and what a drain may stop."""

import pytest

from llm_operator import names
from llm_operator.exposures import network_policy, pod_disruption_budget, pod_monitor, service

OWN = names.selector("smollm2")
ANYBODY = {"ports": [{"port": "http", "protocol": "TCP"}]}


def policy(cr, operator_namespace="operators"):
    return network_policy(cr, operator_namespace)["spec"]


def test_everything_selects_the_pods_of_this_model_alone(make):
    cr = make(replicas=2, monitoring={"enabled": True})
    assert service(cr)["spec"]["selector"] == OWN
    assert policy(cr)["podSelector"]["matchLabels"] == OWN
    assert pod_disruption_budget(cr)["spec"]["selector"]["matchLabels"] == OWN
    assert pod_monitor(cr)["spec"]["selector"]["matchLabels"] == OWN


def test_the_service_is_as_the_user_says(make):
    wanted = {"type": "LoadBalancer", "port": 8000, "annotations": {"a": "b"}}
    rendered = service(make(service=wanted))
    assert rendered["spec"]["type"] == "LoadBalancer"
    assert rendered["metadata"]["annotations"] == {"a": "b"}
    (port,) = rendered["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (8000, "http")


def test_by_default_everybody_reaches_the_serving_port_and_pods_reach_nobody(make):
    rendered = policy(make())
    assert rendered["ingress"] == [ANYBODY]
    assert rendered["egress"] == []
    assert rendered["policyTypes"] == ["Ingress", "Egress"]


def test_without_a_policy_there_is_none(make):
    assert network_policy(make(networkPolicy={"enabled": False}), "operators") is None


def test_named_peers_and_the_operator_alone_reach_the_serving_port(make):
    cr = make(networkPolicy={"ingressFrom": [{"podSelector": {"matchLabels": {"app": "chat"}}}]})
    (rule,) = policy(cr)["ingress"]
    peers, operator = rule["from"]
    assert peers == {"podSelector": {"matchLabels": {"app": "chat"}}}
    assert operator["podSelector"]["matchLabels"] == names.OPERATOR_SELECTOR
    assert operator["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": "operators"
    }
    assert rule["ports"] == ANYBODY["ports"]


def test_an_operator_outside_of_the_cluster_is_no_peer(make):
    cr = make(networkPolicy={"ingressFrom": [{"podSelector": {}}]})
    (rule,) = policy(cr, operator_namespace=None)["ingress"]
    assert rule["from"] == [{"podSelector": {}}]


def test_what_the_user_opens_comes_beside_the_hub(make):
    egress = {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}
    cr = make(model={"source": {"hub": {}}}, networkPolicy={"egress": [egress]})
    names_, hub, own = policy(cr)["egress"]
    assert {each["protocol"] for each in names_["ports"]} == {"UDP", "TCP"}
    assert hub == {"ports": [{"port": 443, "protocol": "TCP"}]}
    assert own == egress


@pytest.mark.parametrize(
    ("spec", "there"),
    [
        ({"replicas": 0}, False),
        ({"replicas": 1}, False),
        ({"replicas": 2}, True),
        ({"replicas": 2, "suspend": True}, False),
    ],
)
def test_a_drain_stops_one_pod_at_a_time_where_there_are_more(make, spec, there):
    budget = pod_disruption_budget(make(**spec))
    assert (budget is not None) is there
    if budget:
        assert budget["spec"]["maxUnavailable"] == 1
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_prometheus_finds_the_pods_by_a_port_that_they_have(make):
    assert pod_monitor(make()) is None
    cr = make(monitoring={"enabled": True, "interval": "10s", "labels": {"release": "prom"}})
    rendered = pod_monitor(cr)
    assert rendered["metadata"]["labels"] == {"release": "prom"}
    assert rendered["spec"]["podMetricsEndpoints"] == [
        {"port": names.PORT_NAME, "path": "/metrics", "interval": "10s"}
    ]
