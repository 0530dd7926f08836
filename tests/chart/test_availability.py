"""Several operators: how they are spread, replaced, guarded and looked at."""

import pytest

from .conftest import CHART, one


def kinds(objects):
    return {each["kind"] for each in objects}


def pod_labels(objects):
    return one(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]


def test_two_run_by_default_and_are_replaced_one_by_one(template):
    spec = one(template(), "Deployment")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["type"] == "RollingUpdate"
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_they_spread_over_nodes_where_that_is_possible(template):
    objects = template()
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    (spread,) = pod["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    assert spread["labelSelector"]["matchLabels"].items() <= pod_labels(objects).items()


def test_a_follower_is_ready_and_a_process_that_waits_is_alive(template):
    container = one(template(), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    paths = {
        probe: container[f"{probe}Probe"]["httpGet"]["path"]
        for probe in ("startup", "liveness", "readiness")
    }
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}


@pytest.mark.parametrize(("replicas", "there"), [(0, False), (1, False), (2, True), (3, True)])
def test_a_drain_stops_one_at_a_time_and_is_never_blocked(template, replicas, there):
    objects = template(f"replicas={replicas}")
    assert one(objects, "Deployment")["spec"]["replicas"] == replicas
    assert ("PodDisruptionBudget" in kinds(objects)) is there
    if there:
        spec = one(objects, "PodDisruptionBudget")["spec"]
        assert spec["maxUnavailable"] == 1
        assert spec["selector"]["matchLabels"].items() <= pod_labels(objects).items()


def test_no_budget_where_none_is_wanted(template):
    assert "PodDisruptionBudget" not in kinds(template("podDisruptionBudget.enabled=false"))


def test_nothing_is_guarded_unless_asked_for(template):
    assert "NetworkPolicy" not in kinds(template())


def test_the_guard_lets_in_the_port_and_the_peers_named(template):
    objects = template("networkPolicy.enabled=true")
    spec = one(objects, "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    assert spec["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}]}]
    assert spec["podSelector"]["matchLabels"].items() <= pod_labels(objects).items()
    peer = "networkPolicy.from[0].namespaceSelector.matchLabels.a=b"
    spec = one(template("networkPolicy.enabled=true", peer), "NetworkPolicy")["spec"]
    assert spec["ingress"][0]["from"] == [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]


def test_what_it_may_reach_is_bound_only_by_rules_given(template):
    rule = "networkPolicy.egress[0].ports[0].port=443"
    spec = one(template("networkPolicy.enabled=true", rule), "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["egress"] == [{"ports": [{"port": 443}]}]


MONITOR = "metrics.serviceMonitor.enabled=true"


def test_a_monitor_is_refused_where_the_cluster_lacks_the_kind(helm):
    done = helm("template", "x", str(CHART), "--set=image.repository=x", f"--set={MONITOR}")
    assert done.returncode != 0
    assert "install Prometheus Operator first" in done.stderr


def test_a_monitor_reads_the_services_port(helm, template):
    objects = template(MONITOR, "metrics.serviceMonitor.renderMode=alwaysRender")
    spec = one(objects, "ServiceMonitor")["spec"]
    service = one(objects, "Service")
    assert spec["endpoints"] == [{"port": service["spec"]["ports"][0]["name"], "path": "/metrics"}]
    assert spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert "ServiceMonitor" not in kinds(
        template(MONITOR, "metrics.serviceMonitor.renderMode=skipIfMissing")
    )
    done = helm(
        *("template", "x", str(CHART), "--set=image.repository=x", f"--set={MONITOR}"),
        "--api-versions=monitoring.coreos.com/v1/ServiceMonitor",
    )
    assert done.returncode == 0, done.stderr
    assert "kind: ServiceMonitor" in done.stdout


@pytest.mark.parametrize(
    ("replicas", "said"),
    [
        (0, "nothing is reconciled"),
        (1, "One operator runs"),
        (2, "kubectl get lease x-llm-operator"),
    ],
)
def test_notes_say_what_runs(helm, replicas, said):
    done = helm(
        *("install", "x", str(CHART), "--dry-run=client", "--set=image.repository=x"),
        *("--namespace=n", f"--set=replicas={replicas}"),
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout.partition("NOTES:")[2]
