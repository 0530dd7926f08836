"""The Event that tells of a condition."""

from llm_operator.events import event

NOW = "2026-01-01T00:00:00Z"
CONDITION = {"type": "Ready", "status": "False", "reason": "OutOfMemory", "message": "too much"}


def test_it_is_about_the_object_and_says_what_the_condition_says(make):
    cr = make()
    told = event(cr, CONDITION, "Warning", now=NOW)
    assert told["involvedObject"] == {
        "apiVersion": "llm-operator.dev/v1alpha1",
        "kind": "LLMDeployment",
        "namespace": "models",
        "name": "smollm2",
        "uid": cr.metadata.uid,
    }
    assert told["metadata"]["namespace"] == "models"
    assert (told["type"], told["reason"], told["message"]) == ("Warning", "OutOfMemory", "too much")
    assert told["source"] == {"component": "llm-operator"}
    assert (told["firstTimestamp"], told["lastTimestamp"], told["count"]) == (NOW, NOW, 1)


def test_each_has_a_name_of_its_own(make):
    cr = make()
    found = {event(cr, CONDITION, "Normal", now=NOW)["metadata"]["name"] for _ in range(10)}
    assert len(found) == 10
    assert all(name.startswith("smollm2.") for name in found)
