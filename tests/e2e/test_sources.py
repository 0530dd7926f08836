"""Models that are not in the inference image."""

from __future__ import annotations

import httpx

from dev.stand_ins.cache import models
from tests.e2e.harness import Kubectl, llm_deployment
from tests.e2e.traffic import first_answer

EMBEDDING_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def test_a_model_in_an_image_of_its_own_is_mounted_over_what_the_inference_image_holds(
    kubectl: Kubectl,
):
    # The image holds an embedding model: only the volume can know the capital of France.
    resource = llm_deployment(
        "mounted", target="cpu", image={"cpu": "localhost/llm-inference:minilm-cpu"}
    )
    resource["spec"]["model"]["source"] = {"image": {"reference": "localhost/llm-weights:smollm2"}}
    kubectl.apply(resource)
    kubectl.wait_ready("mounted")
    assert "Paris" in first_answer(kubectl.service_url("mounted"), "What is the capital of France?")


def test_a_model_on_a_volume_is_read_from_its_directory(kubectl: Kubectl):
    volume = f"models-{kubectl.namespace}"
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadOnlyMany"],
                "storageClassName": volume,
                "hostPath": {"path": str(models()), "type": "Directory"},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "models"},
            "spec": {
                "accessModes": ["ReadOnlyMany"],
                "storageClassName": volume,
                "resources": {"requests": {"storage": "1Gi"}},
            },
        },
    )
    try:
        claim = {"claimName": "models", "path": EMBEDDING_MODEL}
        resource = llm_deployment("on-volume", target="cpu", server={"maxConcurrency": 2})
        # The image holds SmolLM2: only the volume can embed.
        resource["spec"]["model"] = {
            "id": EMBEDDING_MODEL,
            "servedName": "minilm",
            "source": {"persistentVolumeClaim": claim},
        }
        kubectl.apply(resource)
        kubectl.wait_ready("on-volume")
        body = {"model": "minilm", "input": ["the capital of France", "Paris", "a banana"]}
        answer = httpx.post(f"{kubectl.service_url('on-volume')}/v1/embeddings", json=body)
        capital, paris, banana = (item["embedding"] for item in answer.json()["data"])
        assert cosine(capital, paris) > cosine(capital, banana)
    finally:
        kubectl("delete", "persistentvolume", volume, "--wait=false")


def cosine(one: list[float], other: list[float]) -> float:
    """Of vectors that the model has normalised."""
    return sum(a * b for a, b in zip(one, other, strict=True))
