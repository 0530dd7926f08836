"""Nothing of a stranger is touched; what nobody owns any more is taken up again."""

import pytest

from llm_operator import api, names
from llm_operator.ownership import occupied, owned

from .conftest import UID

STAMP = "2026-01-01T00:00:00Z"


def live(*, uid=None, kind=api.KIND, name="smollm2", controller=True, labels=None, **metadata):
    owner = {"kind": kind, "name": name, "uid": uid, "controller": controller}
    metadata |= {"ownerReferences": [owner]} if uid else {}
    return {"metadata": {"name": "smollm2", "labels": labels or {}, **metadata}}


def test_what_the_llmdeployment_controls_is_its_own(make):
    assert owned(live(uid=UID), make())
    assert occupied(live(uid=UID), make(), "Service") is None


@pytest.mark.parametrize(
    "other", [live(), live(uid="u"), live(uid=UID, controller=False)], ids=["none", "other", "not"]
)
def test_everything_else_is_not(make, other):
    assert not owned(other, make())


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (live(), "Service smollm2 exists and has no owner"),
        (live(uid="u", kind="Helm", name="web"), "exists and belongs to Helm web"),
        (live(uid="u", name="web"), "exists and belongs to LLMDeployment web"),
        (live(uid=UID, controller=False), "has no owner"),
    ],
)
def test_a_strangers_object_stays_and_the_user_is_told_what_to_do(make, other, words):
    taken = occupied(other, make(), "Service")
    assert words in taken.message
    assert "delete it, or give the LLMDeployment another name" in taken.message
    assert not taken.passing


def test_what_is_being_removed_is_waited_for(make):
    namesake = occupied(live(uid="former"), make(), "Service")
    assert "of a deleted LLMDeployment of the same name" in namesake.message
    going = occupied(live(uid=UID, deletionTimestamp=STAMP), make(), "Service")
    assert "is being deleted" in going.message
    assert namesake.passing
    assert going.passing


def test_what_was_left_behind_is_taken_up(make):
    labels = names.labels("smollm2")
    assert occupied(live(labels=labels), make(), "Service") is None
    assert occupied(live(labels=labels | {"more": "x"}), make(), "Service") is None
    assert occupied(live(labels=labels, deletionTimestamp=STAMP), make(), "Service")
    assert occupied(live(labels=names.labels("other")), make(), "Service")
    del labels[names.MANAGED_BY_LABEL]
    assert occupied(live(labels=labels), make(), "Service")
