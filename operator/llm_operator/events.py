"""Events about an LLMDeployment. Pure."""

import secrets
from collections.abc import Mapping
from typing import Any, Literal

from llm_operator import api, names
from llm_operator.api import LLMDeployment


def event(
    cr: LLMDeployment,
    condition: Mapping[str, Any],
    type_: Literal["Normal", "Warning"],
    *,
    now: str,
) -> dict[str, Any]:
    """The Event that tells of a changed condition of `cr`."""
    meta = cr.metadata
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": meta.namespace, "name": f"{meta.name}.{secrets.token_hex(8)}"},
        "involvedObject": {
            "apiVersion": api.API_VERSION,
            "kind": api.KIND,
            "namespace": meta.namespace,
            "name": meta.name,
            "uid": meta.uid,
        },
        "type": type_,
        "reason": condition["reason"],
        "message": condition["message"],
        "source": {"component": names.MANAGER},
        "reportingComponent": names.MANAGER,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
