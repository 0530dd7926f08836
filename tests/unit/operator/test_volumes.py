"""Where files come from, where they are mounted, and what the server is told of it."""

import pytest

from llm_operator.api import Gpu
from llm_operator.volumes import claim_of, files, writes_to_claim

HUB = {"endpoint": "http://hub:80", "tokenSecret": {"name": "hub", "key": "token"}}


def of(make, source=None, *, gpu=None, **spec):
    model = {"source": source} if source else {}
    return files(make(model=model, **spec).spec, gpu)


def volumes(found):
    return {each["name"]: each for each in found.volumes}


def mounts(found):
    return {each["name"]: each for each in found.mounts}


def env(found):
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in found.env}


def test_every_volume_is_mounted(make):
    sources = (None, {"hub": HUB}, {"image": {"reference": "weights:1"}})
    for found in (of(make, source, gpu=Gpu(count=2)) for source in sources):
        assert volumes(found).keys() == mounts(found).keys()


def test_a_preloaded_model_needs_no_volume_but_a_folder_for_scratch(make):
    found = of(make)
    assert mounts(found) == {"tmp": {"name": "tmp", "mountPath": "/tmp"}}
    assert env(found) == {"LLM_MODEL_DIR": "/model"}


@pytest.mark.parametrize(
    ("source", "volume"),
    [
        ({"image": {"reference": "w:1"}}, {"image": {"reference": "w:1"}}),
        (
            {"persistentVolumeClaim": {"claimName": "models"}},
            {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}},
        ),
    ],
)
def test_weights_from_elsewhere_are_mounted_over_the_models_folder(make, source, volume):
    found = of(make, source)
    assert volumes(found)["model"] == {"name": "model", **volume}
    assert mounts(found)["model"]["mountPath"] == env(found)["LLM_MODEL_DIR"] == "/model"
    assert mounts(found)["model"]["readOnly"] is True


def test_a_directory_of_a_volume_is_mounted_alone(make):
    source = {"persistentVolumeClaim": {"claimName": "models", "path": "a/b"}}
    assert mounts(of(make, source))["model"]["subPath"] == "a/b"


def test_the_hub_is_told_and_its_token_comes_from_the_secret(make):
    told = env(of(make, {"hub": HUB}))
    assert told["LLM_MODEL_SOURCE"] == "hub"
    assert told["HF_ENDPOINT"] == "http://hub:80"
    assert told["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert "LLM_MODEL_DIR" not in told


@pytest.mark.parametrize(
    ("cache", "volume"),
    [
        (None, {"emptyDir": {}}),
        ({"claimName": "models"}, {"persistentVolumeClaim": {"claimName": "models"}}),
    ],
)
def test_downloads_are_kept_where_the_user_says(make, cache, volume):
    found = of(make, {"hub": {"cache": cache} if cache else {}})
    assert volumes(found)["cache"] == {"name": "cache", **volume}
    assert mounts(found)["cache"]["mountPath"] == env(found)["LLM_HUB_CACHE_DIR"] == "/cache"
    assert "readOnly" not in mounts(found)["cache"]


@pytest.mark.parametrize("storage_class", [None, "fast"])
def test_a_volume_of_each_pods_own_is_made_with_the_pod(make, storage_class):
    cache = {"size": "10Gi", **({"storageClassName": storage_class} if storage_class else {})}
    volume = volumes(of(make, {"hub": {"cache": cache}}))["cache"]
    claim = volume["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert claim["resources"] == {"requests": {"storage": "10Gi"}}
    assert claim["accessModes"] == ["ReadWriteOnce"]
    assert claim["storageClassName"] == storage_class


def test_api_keys_are_a_file_that_changes_without_a_restart(make):
    found = of(make, server={"apiKeySecret": {"name": "keys", "key": "chat"}})
    volume, mount = volumes(found)["api-keys"]["secret"], mounts(found)["api-keys"]
    (item,) = volume["items"]
    assert (volume["secretName"], item["key"]) == ("keys", "chat")
    assert env(found)["LLM_API_KEYS_FILE"] == f"{mount['mountPath']}/{item['path']}"
    assert "subPath" not in mount, "the kubelet never renews what is mounted by subPath"


@pytest.mark.parametrize(("gpu", "there"), [(None, False), (Gpu(), False), (Gpu(count=2), True)])
def test_gpus_of_one_pod_share_memory(make, gpu, there):
    assert ("shm" in volumes(of(make, gpu=gpu))) is there


@pytest.mark.parametrize(
    ("source", "claim", "writes"),
    [
        (None, None, False),
        ({"persistentVolumeClaim": {"claimName": "models"}}, "models", False),
        ({"hub": {"cache": {"claimName": "models"}}}, "models", True),
        ({"hub": {"cache": {"size": "1Gi"}}}, None, True),
    ],
)
def test_the_claim_that_pods_share(make, source, claim, writes):
    spec = make(model={"source": source} if source else {}).spec
    assert claim_of(spec) == claim
    assert writes_to_claim(spec) is writes
