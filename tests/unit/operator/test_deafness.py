import pytest
from kopf import OperatorSettings

from llm_operator.deafness import PATIENCE_SECONDS, Deafness
from llm_operator.resources import DEPLOYMENT, NODE, POD


def body(name, version, namespace="models"):
    return {"metadata": {"namespace": namespace, "name": name, "resourceVersion": str(version)}}


class World:
    def __init__(self, namespaces=()):
        self.time = 0.0
        self.deafness = Deafness(namespaces, now=lambda: self.time)

    def wait(self):
        self.time += PATIENCE_SECONDS


@pytest.fixture
def world():
    return World()


def test_patience_outlasts_kopfs_own_remedy():
    assert OperatorSettings().watching.inactivity_timeout + 15 < PATIENCE_SECONDS


def test_a_watch_that_told_what_lists_show_is_well(world):
    world.deafness.heard(POD, body("a", 5))
    world.deafness.listed(POD, "", [body("a", 5), body("b", 3)])
    world.wait()
    assert not world.deafness.is_suspected()


def test_a_watch_that_owes_a_version_for_long_is_deaf_once_a_second_list_shows_it_too(world):
    world.deafness.heard(POD, body("a", 5))
    world.deafness.listed(POD, "", [body("a", 5), body("b", 6)])
    assert not world.deafness.is_suspected()
    world.wait()
    assert world.deafness.is_suspected()
    assert world.deafness.found() == []
    world.deafness.listed(POD, "", [body("a", 5), body("b", 6)])
    assert world.deafness.found() == ["pods in all namespaces"]


def test_a_watch_that_never_told_anything_is_deaf_too(world):
    world.deafness.listed(POD, "", [body("a", 5)])
    world.wait()
    world.deafness.listed(POD, "", [body("a", 5)])
    assert world.deafness.found()


def test_a_second_list_that_comes_early_is_no_proof(world):
    world.deafness.listed(POD, "", [body("a", 5)])
    world.time += PATIENCE_SECONDS / 2
    world.deafness.listed(POD, "", [body("a", 5), body("b", 7)])
    assert not world.deafness.found()
    world.time += PATIENCE_SECONDS / 2
    world.deafness.listed(POD, "", [body("a", 5), body("b", 7)])
    assert world.deafness.found(), "the first list counts, not the last"


@pytest.mark.parametrize("name", ["b", "another, newer"])
def test_anything_newer_clears_a_watch(world, name):
    world.deafness.listed(POD, "", [body("b", 6)])
    world.wait()
    world.deafness.heard(POD, body(name, 7))
    assert not world.deafness.is_suspected()


def test_something_older_does_not(world):
    world.deafness.listed(POD, "", [body("b", 6)])
    world.deafness.heard(POD, body("a", 5))
    world.wait()
    assert world.deafness.is_suspected()


def test_what_was_deleted_meanwhile_is_no_proof(world):
    world.deafness.listed(POD, "", [body("a", 1), body("b", 6)])
    world.wait()
    world.deafness.heard(POD, body("a", 1))
    world.deafness.listed(POD, "", [body("a", 1)])
    assert not world.deafness.found()
    assert not world.deafness.is_suspected()


def test_kinds_and_namespaces_are_judged_apart():
    world = World(namespaces=("x", "y"))
    world.deafness.heard(POD, body("a", 9, namespace="x"))
    world.deafness.heard(DEPLOYMENT, body("a", 9, namespace="y"))
    world.deafness.heard(NODE, {"metadata": {"name": "n", "resourceVersion": "9"}})
    for _ in range(2):
        world.deafness.listed(POD, "x", [body("a", 9, namespace="x")])
        world.deafness.listed(POD, "y", [body("a", 5, namespace="y")])
        world.deafness.listed(DEPLOYMENT, "y", [body("a", 9, namespace="y")])
        world.deafness.listed(NODE, "", [{"metadata": {"name": "n", "resourceVersion": "9"}}])
        world.wait()
    assert world.deafness.found() == ["pods in y"]


def test_an_outage_of_the_api_server_is_not_a_watchs_fault(world):
    world.deafness.listed(POD, "", [body("a", 5)])
    world.wait()
    world.deafness.unreachable()
    world.deafness.listed(POD, "", [body("a", 5)])
    assert not world.deafness.found()
    assert not world.deafness.is_suspected()


def test_nothing_is_nothing(world):
    world.deafness.listed(POD, "", [])
    world.wait()
    assert not world.deafness.is_suspected()
