"""A model that pods download from a hub: once, kept where the user says, past a closed network."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dev.cluster.network import NODE_ADDRESS
from dev.stand_ins import mirror, repositories
from dev.stand_ins.cache import models
from tests.e2e.harness import KIND, MODEL, Kubectl, condition, eventually, llm_deployment
from tests.e2e.test_network_policy import enforced
from tests.e2e.traffic import first_answer

__all__ = ["enforced"]

WEIGHTS = "model.safetensors"
TOKEN = "hf_token_of_the_test"
GATED = "acme/gated"


class Hub(mirror.Mirror):
    """The hub's stand-in where pods reach it. Counts the bytes of weights that it sends."""

    def __init__(self) -> None:
        directory = models() / MODEL
        found = {
            MODEL: repositories.read(MODEL, directory),
            GATED: repositories.read(GATED, directory, TOKEN),
        }
        super().__init__(found, [], port=0, host=NODE_ADDRESS)
        self.RequestHandlerClass = CountingHandler
        self.downloads: Counter[str] = Counter()
        self.lock = threading.Lock()


class CountingHandler(mirror.Handler):
    """Takes note of each download of weights, by the address that asks."""

    server: Hub

    def _send(self, path: Path, headers: dict[str, str]) -> None:
        if self.command == "GET" and path.name == WEIGHTS:
            with self.server.lock:
                self.server.downloads[self.client_address[0]] += 1
        super()._send(path, headers)


@pytest.fixture
def hub(enforced: None) -> Iterator[Hub]:
    """A hub, in a cluster whose network policies bind."""
    with mirror.serving(Hub()) as server:
        assert isinstance(server, Hub)
        yield server


def from_hub(
    name: str, hub: Hub, *, model: str = MODEL, source: dict[str, Any] | None = None, **spec: Any
) -> dict[str, Any]:
    resource = llm_deployment(name, target="cpu", **spec)
    resource["spec"]["model"] = {
        "id": model,
        "servedName": MODEL,
        "source": {"hub": {"endpoint": hub.url, **(source or {})}},
    }
    return resource


def status(kubectl: Kubectl, name: str) -> dict[str, Any]:
    found: dict[str, Any] = kubectl.json("get", KIND, name).get("status", {})
    return found


def test_a_model_is_downloaded_once_and_outlives_its_container(kubectl: Kubectl, hub: Hub):
    kubectl.apply(from_hub("fetched", hub))
    kubectl.wait_ready("fetched", timeout=400)
    assert "Paris" in first_answer(kubectl.service_url("fetched"), "What is the capital of France?")
    (pod,) = kubectl.pods_of("fetched")
    assert hub.downloads.keys() == {pod["status"]["podIP"]}
    cold_start = eventually(lambda: status(kubectl, "fetched").get("coldStart"), within=30)
    assert cold_start["modelDownloaded"] > 0
    assert cold_start["pod"] == pod["metadata"]["name"]
    sent = hub.downloads.total()

    kubectl("exec", pod["metadata"]["name"], "--", "python", "-c", "import os; os.kill(1, 15)")
    eventually(lambda: restarted(kubectl, pod["metadata"]["name"]), within=180)
    assert "Paris" in first_answer(kubectl.service_url("fetched"), "What is the capital of France?")
    assert hub.downloads.total() == sent


def restarted(kubectl: Kubectl, pod: str) -> bool:
    (server,) = kubectl.json("get", "pod", pod)["status"]["containerStatuses"]
    return bool(server["restartCount"] == 1 and server["ready"])


def test_a_gated_model_wants_its_token(kubectl: Kubectl, hub: Hub):
    kubectl.apply(from_hub("gated", hub, model=GATED))
    told = eventually(lambda: failed(kubectl, "gated", "ModelLoadFailed"), within=120)
    assert GATED in told["message"]
    secret = {"name": "hub", "key": "token"}
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "hub"},
            "stringData": {"token": TOKEN},
        },
        from_hub("gated", hub, model=GATED, source={"tokenSecret": secret}),
    )
    kubectl.wait_ready("gated", timeout=400)
    assert TOKEN not in kubectl("get", f"{KIND},deployments,pods,events", "-o", "yaml")


def failed(kubectl: Kubectl, name: str, reason: str) -> dict[str, Any]:
    found = condition(kubectl.json("get", KIND, name), "Ready")
    assert (found.get("status"), found.get("reason")) == ("False", reason), found
    return found


def test_pods_that_share_a_cache_download_once(kubectl: Kubectl, hub: Hub):
    with shared_volume(kubectl):
        cached = from_hub("cached", hub, source={"cache": {"claimName": "cache"}})
        kubectl.apply(cached)
        kubectl.wait_ready("cached", timeout=400)
        sent = hub.downloads.total()
        assert sent
        kubectl("scale", "llmdeployment/cached", "--replicas=2")
        eventually(lambda: status(kubectl, "cached").get("readyReplicas") == 2, within=240)
        assert hub.downloads.total() == sent
        kubectl("delete", KIND, "cached")
        eventually(lambda: not kubectl.items("pods"), within=90)


@contextmanager
def shared_volume(kubectl: Kubectl) -> Iterator[None]:
    """A claim `cache` that many nodes could mount and that the servers' user may write to."""
    name = f"cache-{kubectl.namespace}"
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    folder.chmod(0o777)
    spec = {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": name,
        "resources": {"requests": {"storage": "1Gi"}},
    }
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteMany"],
                "storageClassName": name,
                "hostPath": {"path": str(folder), "type": "Directory"},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "cache"},
            "spec": spec,
        },
    )
    try:
        yield
    finally:
        kubectl("delete", "persistentvolume", name, "--wait=false")
        shutil.rmtree(folder, ignore_errors=True)


def test_a_volume_that_nobody_makes_is_told(kubectl: Kubectl, hub: Hub):
    cache = {"size": "1Gi", "storageClassName": f"none-{os.getpid()}"}
    kubectl.apply(from_hub("waiting", hub, source={"cache": cache}))
    told = eventually(lambda: failed(kubectl, "waiting", "VolumeNotReady"), within=60)
    assert "PersistentVolumeClaim" in told["message"]
    (claim,) = kubectl.items("persistentvolumeclaims")
    (pod,) = kubectl.pods_of("waiting")
    assert claim["metadata"]["ownerReferences"][0]["uid"] == pod["metadata"]["uid"]
    kubectl("delete", KIND, "waiting")
    eventually(lambda: not kubectl.items("persistentvolumeclaims"), within=60)


def test_a_claim_for_one_node_is_left_by_the_old_pod_first(kubectl: Kubectl, hub: Hub):
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "single"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "none",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    kubectl.apply(claim, from_hub("single", hub, source={"cache": {"claimName": "single"}}))
    deployment = eventually(
        lambda: kubectl.items("deployments", "--field-selector=metadata.name=single"), within=30
    )[0]
    update = deployment["spec"]["strategy"]["rollingUpdate"]
    assert update == {"maxSurge": 0, "maxUnavailable": 1}
    kubectl("scale", "llmdeployment/single", "--replicas=2")
    told = eventually(lambda: failed(kubectl, "single", "InvalidSpec"), within=30)
    assert "ReadWriteMany" in told["message"]
