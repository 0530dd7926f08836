"""How the model and everything else that is a file gets into a pod. Pure.

Knows the sources of a model and the volumes, mounts and variables they need. Does not know the
rest of the container (podtemplate).
"""

from dataclasses import dataclass, field

from llm_operator.api import Gpu, LLMDeploymentSpec
from llm_operator.manifest import Manifest, dump
from llm_operator.model import HubSource

MODEL_DIR = "/model"
CACHE_DIR = "/cache"
API_KEYS_DIR = "/etc/llm"
_API_KEYS_FILE = "api-keys"


@dataclass
class Files:
    """Volumes of a pod with their mounts, and the variables that tell the server about them."""

    volumes: list[Manifest] = field(default_factory=list)
    mounts: list[Manifest] = field(default_factory=list)
    env: list[Manifest] = field(default_factory=list)

    def add(self, name: str, path: str, volume: Manifest, **mount: object) -> None:
        """Mount `volume` at `path`."""
        self.volumes.append({"name": name, **volume})
        self.mounts.append({"name": name, "mountPath": path, **mount})

    def tell(self, name: str, value: str) -> None:
        """Set a variable."""
        self.env.append({"name": name, "value": value})


def files(spec: LLMDeploymentSpec, gpu: Gpu | None) -> Files:
    """All files of the pods of `spec`, that run on `gpu` or on none."""
    found = Files()
    found.add("tmp", "/tmp", {"emptyDir": {}})  # noqa: S108 - the only path a server may write to
    if gpu is not None and gpu.count > 1:
        # GPUs of one pod exchange data through shared memory; a container has but 64 MB of it.
        found.add("shm", "/dev/shm", {"emptyDir": {"medium": "Memory"}})  # noqa: S108
    _add_model(found, spec)
    _add_api_keys(found, spec)
    return found


def _add_model(found: Files, spec: LLMDeploymentSpec) -> None:
    source = spec.model.source
    if source.hub:
        _add_hub(found, source.hub)
        return
    found.tell("LLM_MODEL_DIR", MODEL_DIR)
    if source.image:
        found.add("model", MODEL_DIR, {"image": dump(source.image)}, readOnly=True)
    elif source.persistent_volume_claim:
        claim = source.persistent_volume_claim
        volume = {"persistentVolumeClaim": {"claimName": claim.claim_name, "readOnly": True}}
        found.add("model", MODEL_DIR, volume, readOnly=True, subPath=claim.path)


def _add_hub(found: Files, hub: HubSource) -> None:
    found.tell("LLM_MODEL_SOURCE", "hub")
    found.tell("LLM_HUB_CACHE_DIR", CACHE_DIR)
    if hub.endpoint:
        found.tell("HF_ENDPOINT", hub.endpoint)
    if hub.token_secret:
        token = {"secretKeyRef": dump(hub.token_secret)}
        found.env.append({"name": "HF_TOKEN", "valueFrom": token})
    found.add("cache", CACHE_DIR, _cache_volume(hub))


def _cache_volume(hub: HubSource) -> Manifest:
    if hub.cache is None:
        return {"emptyDir": {}}
    if hub.cache.claim_name:
        return {"persistentVolumeClaim": {"claimName": hub.cache.claim_name}}
    # Made for the pod, where the pod is scheduled: it can never hold a pod on the wrong node.
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": hub.cache.storage_class_name,
        "resources": {"requests": {"storage": str(hub.cache.size)}},
    }
    return {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}


def _add_api_keys(found: Files, spec: LLMDeploymentSpec) -> None:
    secret = spec.server.api_key_secret
    if secret is None:
        return
    item = {"key": secret.key, "path": _API_KEYS_FILE}
    volume = {"secret": {"secretName": secret.name, "items": [item]}}
    found.add("api-keys", API_KEYS_DIR, volume, readOnly=True)
    found.tell("LLM_API_KEYS_FILE", f"{API_KEYS_DIR}/{_API_KEYS_FILE}")


def claim_of(spec: LLMDeploymentSpec) -> str | None:
    """Name of the PersistentVolumeClaim that all pods share, if there is one."""
    source = spec.model.source
    if source.persistent_volume_claim:
        return source.persistent_volume_claim.claim_name
    if source.hub and source.hub.cache:
        return source.hub.cache.claim_name
    return None


def writes_to_claim(spec: LLMDeploymentSpec) -> bool:
    """Whether the pods write to that claim."""
    return spec.model.source.hub is not None
