"""Every example becomes objects that are accepted, and those that this cluster can run serve."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from llm_operator.profiles import HardwareProfile
from tests.e2e.api_server import ApiServer, server
from tests.e2e.harness import MODEL, Kubectl, condition, eventually
from tests.e2e.rendering import pod, rendered, stored
from tests.e2e.traffic import first_answer

__all__ = ["server"]

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.yaml"))
QUESTION = "What is the capital of France?"


def documents(example: str) -> list[dict[str, Any]]:
    """What is in an example, with the images of this machine for a registry's."""
    text = (ROOT / "examples" / f"{example}.yaml").read_text(encoding="utf-8")
    return list(yaml.safe_load_all(text.replace("registry.example.com/llm/", "localhost/")))


def llm_deployment(example: str) -> dict[str, Any]:
    (found,) = [each for each in documents(example) if each["kind"] == "LLMDeployment"]
    return found


def documented_profiles() -> dict[str, HardwareProfile]:
    """The profiles that docs/hardware.md shows."""
    (values,) = re.findall(
        r"```yaml\n(hardwareProfiles:.*?)```", (ROOT / "docs/hardware.md").read_text(), re.S
    )
    profiles = yaml.safe_load(values)["hardwareProfiles"]
    return {name: HardwareProfile.read(name, body) for name, body in profiles.items()}


@pytest.mark.parametrize("example", EXAMPLES)
def test_what_becomes_of_an_example_is_accepted(server: ApiServer, example: str):
    cr = stored(server, llm_deployment(example)["spec"])
    _, objects = rendered(cr, documented_profiles())
    for manifest in objects:
        server.apply(manifest)
    server.create(pod(objects[0]))


def served(kubectl: Kubectl, example: str) -> str:
    """Apply an example and wait until it serves and its Service leads there; its address."""
    kubectl.apply(*documents(example))
    name = llm_deployment(example)["metadata"]["name"]
    kubectl.wait_ready(name)
    url = kubectl.service_url(name)
    eventually(lambda: answers(url), within=20)
    return url


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").is_success
    except httpx.ConnectError:
        return False


@pytest.mark.parametrize("example", ["smollm2", "cpu", "network-policy", "image-volume"])
def test_it_answers(kubectl: Kubectl, example: str):
    assert "Paris" in first_answer(served(kubectl, example), QUESTION)


def test_only_keys_are_answered(kubectl: Kubectl):
    url = served(kubectl, "api-keys")
    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 4}

    def status(**headers: str) -> int:
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)
        return answer.status_code

    assert status() == 401
    assert status(authorization="Bearer replace-this-key") == 200
    assert status(authorization="Bearer and-this-one") == 200


def test_embeddings_come_under_the_name_that_was_given(kubectl: Kubectl):
    body = {"model": "minilm", "input": "Paris"}
    answer = httpx.post(f"{served(kubectl, 'embeddings')}/v1/embeddings", json=body, timeout=60)
    assert len(answer.json()["data"][0]["embedding"]) == 384


def test_an_autoscaler_follows_it(kubectl: Kubectl):
    served(kubectl, "autoscaling")
    scaler = eventually(lambda: kubectl.json("get", "hpa", "smollm2-autoscaled"), within=10)
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (1, 4)
    able = eventually(lambda: condition(scaler_now(kubectl), "AbleToScale"), within=60)
    assert able["status"] == "True"


def scaler_now(kubectl: Kubectl) -> dict[str, Any]:
    return kubectl.json("get", "hpa", "smollm2-autoscaled")
