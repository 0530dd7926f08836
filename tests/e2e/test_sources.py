"""Models that are not in the inference image."""

from __future__ import annotations

from tests.e2e.harness import Kubectl, chat, llm_deployment


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
    assert "Paris" in chat(kubectl.service_url("mounted"), "What is the capital of France?")
