import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from llm_operator.api import API_VERSION, KIND, LLMDeployment

Body = dict[str, Any]

UID = "0b6fa7de-1c39-4f0c-8b0a-6b3f1b1f9d11"


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Body:
    """`base` with `changes` merged into its objects."""
    result = copy.deepcopy(dict(base))
    for name, value in changes.items():
        inner = result.get(name)
        both = isinstance(inner, dict) and isinstance(value, Mapping)
        result[name] = merged(inner, value) if both else value
    return result


@pytest.fixture
def make_body() -> Callable[..., Body]:
    """Makes an LLMDeployment as the API server gives it."""

    def make(*, name: str = "smollm2", status: Body | None = None, **spec: Any) -> Body:
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {
                "name": name,
                "namespace": "models",
                "uid": UID,
                "generation": 1,
                "resourceVersion": "1",
            },
            "spec": merged({"model": {"id": "HuggingFaceTB/SmolLM2-135M-Instruct"}}, spec),
            **({"status": status} if status else {}),
        }

    return make


@pytest.fixture
def make(make_body: Callable[..., Body]) -> Callable[..., LLMDeployment]:
    """Makes an LLMDeployment from parts of its spec."""

    def make(**parts: Any) -> LLMDeployment:
        return LLMDeployment.parse(make_body(**parts))

    return make


@pytest.fixture
def make_pod() -> Callable[..., Body]:
    """Makes a Pod as the kubelet would report it."""

    def make(
        name: str = "smollm2-a",
        *,
        template: str = "current",
        ready: bool = False,
        container: Body | None = None,
        conditions: list[Body] | None = None,
        **metadata: Any,
    ) -> Body:
        return {
            "metadata": {
                "name": name,
                "namespace": "models",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "resourceVersion": "1",
                "labels": {
                    "app.kubernetes.io/instance": "smollm2",
                    "llm-operator.dev/template": template,
                },
                **metadata,
            },
            "status": {
                "phase": "Running",
                "conditions": [
                    {"type": "Ready", "status": str(ready)},
                    *(conditions or [{"type": "PodScheduled", "status": "True"}]),
                ],
                "containerStatuses": [{"name": "server", **container}] if container else [],
            },
        }

    return make


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write the golden files of rendered objects"
    )
