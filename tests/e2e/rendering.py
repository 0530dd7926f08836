"""What the operator makes of a spec: the pure part of it, from the stored object to all manifests.

Knows the order in which the controller does it. Does not know what is expected of the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_operator import api, hardware, images, podtemplate, render, validity
from llm_operator.profiles import HardwareProfile
from llm_operator.settings import RuntimeImage
from tests.e2e.api_server import ApiServer, Body

RUNTIME = RuntimeImage(repository="registry.example/llm", tag="v1")
PROFILES = {
    "small": HardwareProfile.read("small", {"resources": {"limits": {"cpu": 1}}}),
    "large": HardwareProfile.read(
        "large", {"gpu": {"count": 2}, "tolerations": [{"key": "large", "operator": "Exists"}]}
    ),
}
# What a dry run of a pod looks up, and nobody made.
LOOKED_UP = {"serviceAccountName", "priorityClassName", "runtimeClassName"}


def stored(server: ApiServer, spec: Mapping[str, Any]) -> api.LLMDeployment:
    """The LLMDeployment as the API server would keep it.

    Raises:
        RefusedError: It would not.
    """
    manifest = {
        "apiVersion": api.API_VERSION,
        "kind": api.KIND,
        "metadata": {"name": "x"},
        "spec": spec,
    }
    return api.LLMDeployment.parse(server.create(manifest))


def rendered(
    cr: api.LLMDeployment, profiles: Mapping[str, HardwareProfile] = PROFILES
) -> tuple[hardware.Decision, list[Body]]:
    """What the operator makes of it: the hardware chosen and why, and all objects.

    Raises:
        validity.InvalidSpecError: It says what is wrong.
    """
    cr = validity.resolve(cr, profiles)
    decision = hardware.choose(cr.spec, previous=None, gpu_image=True, nodes=None)
    image = images.reference(cr.spec.image, RUNTIME, decision.target)
    assert image is not None
    template = podtemplate.template("x", cr.spec, podtemplate.Choices(decision.target, image))
    return decision, render.objects(cr, template, operator_namespace="operators")


def pod(deployment: Body) -> Body:
    """A pod of the Deployment."""
    template = deployment["spec"]["template"]
    spec = {name: value for name, value in template["spec"].items() if name not in LOOKED_UP}
    metadata = {"name": "x", **template["metadata"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
