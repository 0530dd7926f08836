import pytest

from llm_operator import images
from llm_operator.api import Image
from llm_operator.settings import RuntimeImage

NONE = RuntimeImage()
DEFAULT = RuntimeImage(repository="default/llm", tag="v1")
DIGEST = "repo@sha256:" + "0123" * 16


@pytest.mark.parametrize(
    ("image", "default", "cpu", "gpu"),
    [
        (Image(), NONE, None, None),
        (Image(), DEFAULT, "default/llm:v1-cpu", "default/llm:v1-gpu"),
        (Image(tag="v2"), DEFAULT, "default/llm:v2-cpu", "default/llm:v2-gpu"),
        (Image(tag="v2"), NONE, None, None),
        (Image(repository="r"), DEFAULT, "r:cpu", "r:gpu"),
        (Image(repository="r", tag="t"), NONE, "r:t-cpu", "r:t-gpu"),
        (Image(cpu=DIGEST), DEFAULT, DIGEST, None),
        (Image(), RuntimeImage(cpu="c:1", repository="d"), "c:1", "d:gpu"),
    ],
)
def test_reference(image, default, cpu, gpu):
    assert images.reference(image, default, "cpu") == cpu
    assert images.reference(image, default, "gpu") == gpu
