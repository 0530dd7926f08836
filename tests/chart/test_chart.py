"""The chart: what it renders is valid, least-privilege, and a wrong value is refused by name."""

import itertools
import json
import re

import kubernetes_validate
import pytest
import yaml

from llm_operator import crd
from llm_operator.settings import Settings

from .conftest import CHART, one

ALL = (CHART / "ci" / "all-values.yaml",)
CRD = "CustomResourceDefinition"


@pytest.mark.parametrize("values", [(), ALL], ids=["defaults", "everything set"])
def test_lint(helm, values):
    done = helm("lint", "--strict", str(CHART), *(f"--values={path}" for path in values))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("values", [(), ALL], ids=["defaults", "everything set"])
def test_kubernetes_knows_every_field(template, values):
    objects = template(files=values)
    assert {"Deployment", "Service", "ServiceAccount", CRD} <= {each["kind"] for each in objects}
    for each in objects:
        if each["kind"] != "ServiceMonitor":  # no kind of Kubernetes' own
            kubernetes_validate.validate(each, "1.37", strict=True)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("image.repositry=x", "repositry"),
        ("runtime.image.digest=x", "digest"),
        ("watchNamespace={a}", "watchNamespace"),
        ("logFormat=xml", "logFormat"),
        ("resyncSeconds=0", "resyncSeconds"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("image.digest=latest", "digest"),
        ("watchNamespaces={Team_A}", "watchNamespaces"),
        ("replicas=-1", "replicas"),
        ("hardwareProfiles.a100=x", "hardwareProfiles"),
        ("hardwareProfiles.A100.gpu.count=1", "hardwareProfiles"),
        ("metrics.serviceMonitor.renderMode=perhaps", "renderMode"),
        ("metrics.serviceMonitor.interval=often", "interval"),
        ("networkPolicy.form={}", "form"),
    ],
)
def test_a_wrong_value_is_refused_by_name(helm, value, said):
    done = helm("template", "x", str(CHART), "--set=image.repository=x", f"--set={value}")
    assert done.returncode != 0
    assert said in done.stderr


def test_the_schema_knows_exactly_the_values_there_are():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def differences(node, given, path=""):
        known = node.get("properties")
        if known is None or not isinstance(given, dict):
            return
        assert node["additionalProperties"] is False, path
        if path not in (".resources", ".hardwareProfiles", ""):
            assert known.keys() == given.keys(), path
        for name, value in given.items():
            differences(known[name], value, f"{path}.{name}")

    differences(schema, values)
    assert schema["properties"].keys() - {"global"} == values.keys()


def test_every_value_is_documented():
    text = (CHART / "values.yaml").read_text()
    text = text.replace(re.search(r"^resources:\n( .*\n)+", text, re.MULTILINE)[0], "")
    for before, line in itertools.pairwise(text.splitlines()):
        name, _, value = line.strip().partition(":")
        if not name or line.lstrip().startswith(("#", "-")) or not value:
            continue
        assert before.lstrip().startswith("#"), f"{name} has no comment above it"


def test_the_operators_image_must_be_named(helm):
    done = helm("template", "x", str(CHART))
    assert done.returncode != 0
    assert "image.repository is not set" in done.stderr


@pytest.mark.parametrize(
    ("value", "image"),
    [
        ("image.tag=v9", "registry.example.com/llm-operator:v9"),
        ("image.digest=sha256:" + "0" * 64, "registry.example.com/llm-operator@sha256:" + "0" * 64),
    ],
)
def test_image(template, value, image):
    pod = one(template(value), "Deployment")["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == image


def test_the_crd_is_the_generated_one(template):
    rendered = one(template("crds.keep=false"), CRD)
    assert rendered == crd.custom_resource_definition()


def test_the_crd_is_kept_unless_told_otherwise(template):
    metadata = one(template(), CRD)["metadata"]
    assert metadata["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert not [each for each in template("crds.enabled=false") if each["kind"] == CRD]


@pytest.mark.parametrize("values", [(), ALL], ids=["defaults", "everything set"])
def test_settings_reach_the_operator(template, values):
    settings = Settings.from_env(environ(operator(template(files=values))))
    assert settings.lease_namespace() == "system"
    if not values:
        assert settings == Settings(namespace="system", pod_name="llm-operator-x")
        return
    image = settings.runtime_image
    assert (image.repository, image.tag, image.pull_policy) == (
        "registry.example.com/llm",
        "v1",
        "IfNotPresent",
    )
    assert [each.name for each in image.pull_secrets] == ["one", "two"]
    assert settings.watch_namespaces == ("team-a", "team-b")
    assert settings.watch_nodes is False
    assert settings.resync_seconds == 60
    assert (settings.log_level, settings.log_format) == ("debug", "json")
    assert settings.roll_on_config_change is False
    assert settings.hardware_profiles.keys() == {"a100"}
    assert settings.lease_name == "llm-operator"


def environ(container):
    """What the container finds in its environment; what only the kubelet knows is named."""
    return {
        each["name"]: each.get("value")
        or ("" if "value" in each else in_pod(each["valueFrom"]["fieldRef"]["fieldPath"]))
        for each in container["env"]
    }


def in_pod(path):
    return {"metadata.namespace": "system", "metadata.name": "llm-operator-x"}[path]


def test_every_setting_has_a_value(template):
    names = {each["name"] for each in operator(template())["env"]}
    fixed = {
        "LLM_OPERATOR_HEALTH_PORT",  # the port of the container, the probes and the Service
        "LLM_OPERATOR_STANDALONE",  # even one replica is two while it is replaced
    }
    fields = {f"LLM_OPERATOR_{name.upper()}" for name in Settings.model_fields} - {
        "LLM_OPERATOR_RUNTIME_IMAGE"
    }
    assert fields - fixed <= names


def operator(objects):
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    return pod["containers"][0]


@pytest.mark.parametrize("kind", ["Deployment", "Pod"])
def test_pods_pass_pod_security_restricted(template, kind):
    found = one(template(), kind)
    pod = found["spec"]["template"]["spec"] if kind == "Deployment" else found["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["enableServiceLinks"] is False
    for container in pod["containers"]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}


def roles(objects):
    return [
        (each["kind"], each["metadata"].get("namespace"), each)
        for each in objects
        if each["kind"] in ("Role", "ClusterRole")
    ]


def allowed(role):
    assert "*" not in str(role["rules"])
    return {
        f"{resource} {verb}"
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


WRITTEN = {
    "deployments",
    "services",
    "networkpolicies",
    "poddisruptionbudgets",
    "horizontalpodautoscalers",
    "scaledobjects",
    "podmonitors",
}


@pytest.mark.parametrize("values", [(), ("watchNamespaces={a}",)], ids=["cluster", "namespace"])
def test_the_operator_may_do_no_more_than_it_does(template, values):
    objects = template("watchNodes=false", "rollOnConfigChange=false", *values)
    may = allowed(one(objects, "Role" if values else "ClusterRole", "llm-operator"))
    every = {
        f"{resource} {verb}"
        for resource in WRITTEN
        for verb in ("get", "list", "watch", "create", "patch", "delete")
    }
    assert may - every == {
        *("llmdeployments get", "llmdeployments list", "llmdeployments watch"),
        *("llmdeployments/status get", "llmdeployments/status patch"),
        "llmdeployments/finalizers update",
        *("pods get", "pods list", "pods watch"),
        "persistentvolumeclaims get",
        *("events create", "events list"),
    }
    assert every <= may


@pytest.mark.parametrize(
    ("switch", "adds"),
    [
        ("watchNodes", {"nodes list", "nodes watch"}),
        (
            "rollOnConfigChange",
            {
                f"{what} {verb}"
                for what in ("secrets", "configmaps")
                for verb in ("get", "list", "watch")
            },
        ),
    ],
)
def test_a_switch_adds_the_rights_it_needs(template, switch, adds):
    off = {"watchNodes=false", "rollOnConfigChange=false"}
    without = allowed(one(template(*off), "ClusterRole", "llm-operator"))
    other = off - {f"{switch}=false"}
    assert allowed(one(template(*other), "ClusterRole", "llm-operator")) - without == adds


def test_the_operator_may_keep_its_lease_and_no_other(template):
    objects = template("fullnameOverride=other")
    role = one(objects, "Role")
    assert role["metadata"]["namespace"] == "llm-operator-system"
    assert allowed(role) == {"leases create", "leases get", "leases update", "events create"}
    (named,) = [rule for rule in role["rules"] if "resourceNames" in rule]
    assert named["verbs"] == ["get", "update"]
    assert named["resourceNames"] == [environ(operator(objects))["LLM_OPERATOR_LEASE_NAME"]]
    assert one(objects, "RoleBinding")["subjects"][0]["name"] == "other"


def test_a_list_of_namespaces_needs_no_rights_elsewhere(template):
    objects = template("watchNamespaces={a,b}", "rbac.aggregate=false")
    places = {(kind, namespace) for kind, namespace, _ in roles(objects)}
    own = ("Role", "llm-operator-system")
    assert places == {("Role", "a"), ("Role", "b"), own, ("ClusterRole", None)}
    nodes = one(objects, "ClusterRole")["rules"]
    assert [rule["resources"] for rule in nodes] == [["nodes"]]
    bindings = [each for each in objects if each["kind"] == "RoleBinding"]
    assert {each["metadata"]["namespace"] for each in bindings} == {"a", "b", own[1]}
    for binding in bindings:
        assert binding["subjects"][0]["namespace"] == "llm-operator-system"


def test_without_nodes_there_is_no_cluster_role_at_all(template):
    objects = template("watchNamespaces={a}", "rbac.aggregate=false", "watchNodes=false")
    places = {(kind, namespace) for kind, namespace, _ in roles(objects)}
    assert places == {("Role", "a"), ("Role", "llm-operator-system")}


def test_users_get_llmdeployments_with_their_usual_roles(template):
    objects = template()
    view = one(objects, "ClusterRole", "llm-operator-view")
    edit = one(objects, "ClusterRole", "llm-operator-edit")
    prefix = "rbac.authorization.k8s.io/aggregate-to"
    assert view["metadata"]["labels"][f"{prefix}-view"] == "true"
    assert f"{prefix}-view" not in edit["metadata"]["labels"]
    assert edit["metadata"]["labels"][f"{prefix}-edit"] == "true"
    statuses = [rule for rule in edit["rules"] if "llmdeployments/status" in rule["resources"]]
    assert not statuses, "the status belongs to the operator"


def test_an_existing_service_account_is_used(template):
    objects = template("serviceAccount.create=false", "serviceAccount.name=given")
    assert not [each for each in objects if each["kind"] == "ServiceAccount"]
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "given"
    assert one(objects, "ClusterRoleBinding")["subjects"][0]["name"] == "given"


def test_the_test_hook_asks_the_service_that_the_chart_makes(template):
    objects = template("fullnameOverride=other")
    service = one(objects, "Service")
    command = one(objects, "Pod")["spec"]["containers"][0]["command"]
    assert f"http://{service['metadata']['name']}.llm-operator-system.svc:8080/readyz" in command
    assert service["spec"]["ports"][0]["port"] == 8080
    labels = one(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()


def test_notes_say_how_to_begin(helm):
    done = helm(
        "install", "x", str(CHART), "--dry-run=client", "--set=image.repository=x", "--namespace=n"
    )
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "kubectl wait --for=condition=Ready llmdeployment/smollm2" in notes
    assert "There is no default runtime image" in notes
