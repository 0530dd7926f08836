"""Users find every reason and every field of the status in the documents."""

import re
from pathlib import Path

import pytest

from llm_operator import reasons
from llm_operator.fields import ApiModel
from llm_operator.status import ColdStart, LLMDeploymentStatus

DOCUMENT = (Path(__file__).parents[3] / "docs" / "status.md").read_text(encoding="utf-8")
REASONS = {name: value for name, value in vars(reasons).items() if name.isupper()}


def test_a_reason_is_one_word_for_programs():
    assert len(set(REASONS.values())) == len(REASONS)
    assert all(re.fullmatch(r"[A-Z][A-Za-z]+", value) for value in REASONS.values())


@pytest.mark.parametrize("reason", REASONS.values())
def test_every_reason_is_described(reason):
    assert re.search(rf"^\|.*`{reason}`.*\|.*\|", DOCUMENT, re.MULTILINE)


@pytest.mark.parametrize("model", [LLMDeploymentStatus, ColdStart])
def test_every_field_is_described(model: type[ApiModel]):
    names = {field.alias or name for name, field in model.model_fields.items()}
    missing = {name for name in names if f"`{name}`" not in DOCUMENT}
    assert missing <= {"conditions", "pod"}


def test_no_reason_is_described_that_there_is_not():
    tables = DOCUMENT.partition("## Reasons of `Ready`")[2].partition("## Events")[0]
    first = re.findall(r"^\|(?: `\w+` \|)? `([A-Z]\w+)`(?: \||,)", tables, re.MULTILINE)
    kubelets = {"CreateContainerConfigError", "CreateContainerError"}
    conditions = {"Reconciling", "Stalled", "Accelerated", "Autoscaled"}
    assert set(first) - kubelets - conditions <= set(REASONS.values())
    assert len(first) > 20
