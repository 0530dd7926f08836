"""An upgrade of the operator restarts no inference pod.

The operator of an earlier revision is built from the repository's history, installed by its own
chart and replaced by this checkout's. What is held to it: for a spec that nobody changed, this
checkout makes the same pod template, so that pods, their containers and ReplicaSets stay the very
same. Everything beside the template may change, and new objects may come.

A template may only change by decision. It is recorded where the golden file of a minimal spec
differs between the revisions; then restarts are what was decided, and what is held is the rest:
everything becomes Ready again and no request fails meanwhile.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.cluster import paths, tools
from dev.images import builder, catalog, sources
from tests.e2e.harness import (
    KIND,
    ON_FAKE_NODES,
    Kubectl,
    condition,
    eventually,
    llm_deployment,
    steady_traffic,
)
from tests.e2e.solitude import alone

pytestmark = pytest.mark.exclusive

ROOT = Path(__file__).parents[2]
REVISION = "LLM_OPERATOR_UPGRADE_FROM"
GOLDEN = Path("tests/unit/operator/golden")

# Specs that each name many fields. Fields that the earlier revision lacks are left out of them.
SPECS: dict[str, dict[str, Any]] = {
    "plain": {},
    "model": {
        "model": {
            "id": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "revision": "main",
            "servedName": "chat",
            "task": "generate",
            "dtype": "float32",
            "maxLength": 1024,
        },
        "image": {"repository": "localhost/llm-inference", "tag": "smollm2"},
    },
    "server": {
        "server": {
            "maxConcurrency": 4,
            "maxQueue": 8,
            "requestTimeoutSeconds": 60,
            "drainSeconds": 7,
            "logLevel": "debug",
            "env": [
                {"name": "OMP_NUM_THREADS", "value": "1"},
                {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            ],
        },
        "probes": {
            "startupBudgetSeconds": 90,
            "startupPeriodSeconds": 3,
            "readinessPeriodSeconds": 4,
            "livenessPeriodSeconds": 20,
        },
    },
    "pods": {
        "replicas": 3,
        "resources": {
            "requests": {"cpu": "100m", "memory": "64Mi"},
            "limits": {"cpu": "1", "memory": "1Gi"},
        },
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "type", "operator": "Exists"}]}
                    ]
                }
            }
        },
        "serviceAccountName": "default",
        "podLabels": {"team": "search"},
        "podAnnotations": {"example.com/owner": "search"},
        "topologySpreadConstraints": [
            {
                "maxSkew": 2,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
            }
        ],
    },
    "around": {
        "replicas": 2,
        "service": {"port": 8000},
        "networkPolicy": {"enabled": False},
        "rollout": {"strategy": "Recreate"},
    },
    "nothing": {"replicas": 0},
}


@dataclass(frozen=True)
class Release:
    """A revision's operator: where its files lie and what its image is called."""

    files: Path
    image: catalog.Image

    def build(self) -> None:
        """Build its image by its own Dockerfile."""
        with sources.opened([self.image]) as opened:
            command = [
                argument.replace(str(paths.CHECKOUT), str(self.files))
                if argument.startswith("--local=")
                else argument
                for argument in builder.command(self.image, opened)
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    def install(self, kubectl: Kubectl) -> None:
        """Install it, or upgrade to it, for the namespace alone; its CRD as well."""
        crds = str(self.files / "deploy/crds")
        # As the chart would, which cannot own what another release of it has installed.
        manager = ("--server-side", "--force-conflicts", "--field-manager=helm")
        kubectl("apply", *manager, "-f", crds)
        kubectl("wait", "--for=condition=Established", f"crd/{KIND}", "--timeout=30s")
        name, tag = self.image.reference.split(":")
        command = [
            str(tools.path("helm")), "upgrade", "--install", kubectl.namespace,
            str(self.files / "deploy/helm/llm-operator"), f"--kubeconfig={kubectl.kubeconfig}",
            f"--namespace={kubectl.namespace}", f"--values={self.files / 'dev/demo/values.yaml'}",
            f"--set=image.repository={name},image.tag={tag}",
            f"--set=watchNamespaces={{{kubectl.namespace}}},watchNodes=false",
            "--set=crds.enabled=false,rbac.aggregate=false", "--wait", "--timeout=90s",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def fields(self) -> set[str]:
        """The fields of spec that its CRD knows."""
        (crd,) = (self.files / "deploy/crds").glob("*.yaml")
        schema = yaml.safe_load(crd.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        return set(schema["properties"]["spec"]["properties"])

    def templates(self) -> list[Any]:
        """The pod templates that it made of minimal specs when it was released."""
        files = sorted((self.files / GOLDEN).glob("minimal-*.yaml"))
        documents = [d for file in files for d in yaml.safe_load_all(file.read_text())]
        return [d["spec"]["template"] for d in documents if d["kind"] == "Deployment"]


def git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)


def earlier_revision() -> str:
    """The revision to upgrade from: the one asked for, the last tag, or the oldest at hand.

    Without a tag that is the commit before this one, and in a clone of one commit that commit.
    """
    if asked := os.environ.get(REVISION):
        return asked
    tag = git("describe", "--tags", "--abbrev=0", "HEAD~1")
    if tag.returncode == 0:
        return tag.stdout.decode().strip()
    for revision in ("HEAD~1", "HEAD"):
        if git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").returncode == 0:
            return revision
    raise AssertionError(f"no git history in {ROOT}: there is nothing to upgrade from")


def operator_image(tag: str) -> catalog.Image:
    return dataclasses.replace(catalog.OPERATOR, reference=f"localhost/llm-operator:{tag}")


@pytest.fixture
def earlier(tmp_path: Path) -> Release:
    """The earlier revision, built."""
    revision = earlier_revision()
    archive = git("archive", "--format=tar", revision)
    assert archive.returncode == 0, f"{revision}: {archive.stderr.decode()}"
    subprocess.run(["tar", "-x", "-C", str(tmp_path)], input=archive.stdout, check=True)
    release = Release(tmp_path, operator_image("earlier"))
    release.build()
    return release


@pytest.fixture
def current() -> Release:
    """This checkout, built."""
    release = Release(ROOT, operator_image("current"))
    release.build()
    return release


@pytest.fixture
def namespace(cluster: Kubectl) -> Iterator[Kubectl]:
    """kubectl in a fresh namespace that no installed operator serves."""
    name = f"upgrade-{uuid.uuid4().hex[:6]}"
    with alone(cluster):
        cluster("create", "namespace", name)
        inside = Kubectl(cluster.binary, cluster.kubeconfig, name)
        yield inside
        inside("delete", KIND, "--all", "--wait=false")
        cluster("delete", "namespace", name, "--wait=false")
        eventually(lambda: not inside.items("pods"), within=120)
    for tag in ("earlier", "current"):
        subprocess.run(
            [
                *(str(tools.path("ctr")), f"--address={paths.CONTAINERD_SOCKET}"),
                *("--namespace=k8s.io", "images", "rm", f"localhost/llm-operator:{tag}"),
            ],
            check=False,
            capture_output=True,
        )


def test_an_upgrade_restarts_no_inference_pod(
    namespace: Kubectl, earlier: Release, current: Release, fake_nodes: None
):
    kubectl, known = namespace, earlier.fields()
    earlier.install(kubectl)
    manifests = [
        llm_deployment(
            name,
            target="cpu",
            **{
                field: value for field, value in {**ON_FAKE_NODES, **spec}.items() if field in known
            },
        )
        for name, spec in SPECS.items()
    ]
    kubectl.apply(*manifests, llm_deployment("real", target="cpu"))
    kubectl.wait_ready("real")
    eventually(lambda: everything_is_ready(kubectl), within=60)
    before = what_runs(kubectl)
    assert sum(len(pods) for pods in before.pods.values()) >= 8
    with steady_traffic(kubectl.service_url("real"), clients=1, pause=0.5) as traffic:
        current.install(kubectl)
        new_operator_alone(kubectl)
        has_looked_at_everything(kubectl)
        eventually(lambda: everything_is_ready(kubectl), within=120)
        after = what_runs(kubectl)
    assert traffic.failures == []
    assert traffic.answered > 0
    if earlier.templates() == current.templates():
        assert after == before


def everything_is_ready(kubectl: Kubectl) -> bool:
    for cr in kubectl.items(KIND):
        status = cr.get("status", {})
        assert status.get("observedGeneration") == cr["metadata"]["generation"], cr
        ready = condition(cr, "Ready")
        done = ready.get("status") == "True" or ready.get("reason") == "ScaledToZero"
        assert done, f"{cr['metadata']['name']}: {ready}"
        assert status.get("updatedReplicas", 0) == status.get("replicas", 0)
        assert not condition(cr, "Reconciling"), cr
    for deployment in kubectl.items("deployments", "-l", "app.kubernetes.io/name=llm-inference"):
        observed = deployment.get("status", {}).get("observedGeneration")
        assert observed == deployment["metadata"]["generation"]
    return True


def new_operator_alone(kubectl: Kubectl) -> None:
    """Wait until only the current operator's pods are left, and they are ready."""

    def alone_now() -> bool:
        pods = kubectl.items("pods", "-l", "app.kubernetes.io/component=operator")
        images = {pod["spec"]["containers"][0]["image"] for pod in pods}
        assert images == {"localhost/llm-operator:current"}
        return all(condition(pod, "Ready").get("status") == "True" for pod in pods)

    eventually(alone_now, within=60)


def has_looked_at_everything(kubectl: Kubectl) -> None:
    """Wait until the operator has reconciled everything, which shows where it mends a status."""
    names = [cr["metadata"]["name"] for cr in kubectl.items(KIND)]
    for name in names:
        patch = '{"status": {"endpoint": "http://wrong.example"}}'
        kubectl("patch", KIND, name, "--subresource=status", "--type=merge", "-p", patch)

    def mended() -> bool:
        wrong = [cr for cr in kubectl.items(KIND) if "wrong" in cr["status"].get("endpoint", "")]
        assert [cr["metadata"]["name"] for cr in wrong] == []
        return True

    eventually(mended, within=60)


@dataclass(frozen=True)
class Running:
    """What must not change: pods with their restarts, ReplicaSets and templates."""

    pods: dict[str, dict[str, int]]
    replica_sets: dict[str, str]
    templates: dict[str, Any]


def what_runs(kubectl: Kubectl) -> Running:
    selector = ("-l", "app.kubernetes.io/name=llm-inference")
    pods: dict[str, dict[str, int]] = {}
    for pod in kubectl.items("pods", *selector):
        statuses = pod.get("status", {}).get("containerStatuses", [])
        instance = pod["metadata"]["labels"]["app.kubernetes.io/instance"]
        restarts = sum(status["restartCount"] for status in statuses)
        pods.setdefault(instance, {})[pod["metadata"]["uid"]] = restarts
    return Running(
        pods=pods,
        replica_sets={
            item["metadata"]["name"]: item["metadata"]["uid"]
            for item in kubectl.items("replicasets", *selector)
        },
        templates={
            item["metadata"]["name"]: item["spec"]["template"]
            for item in kubectl.items("deployments", *selector)
        },
    )
