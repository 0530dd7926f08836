"""One cluster a machine: who may do what to whose."""

from pathlib import Path

import pytest

from dev.cluster import lifecycle, ownership, paths, preflight, processes, teardown
from dev.cluster.commands import ClusterError
from dev.cluster.ownership import Decision

HERE, THERE = Path("/src/here"), Path("/src/there")


@pytest.mark.parametrize(
    ("owner", "alive", "take_over", "decision"),
    [
        (None, False, False, Decision.FRESH),
        (HERE, False, False, Decision.CLEAN),
        (THERE, False, False, Decision.CLEAN),
        (THERE, False, True, Decision.CLEAN),
        (HERE, True, False, Decision.CONTINUE),
        (HERE, True, True, Decision.CONTINUE),
        (THERE, True, False, Decision.REFUSE),
        (THERE, True, True, Decision.TAKE_OVER),
        (None, True, False, Decision.TAKE_OVER),
    ],
)
def test_decision(owner, alive, take_over, decision):
    assert ownership.decide(owner, HERE, alive=alive, take_over=take_over) is decision


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without a cluster; returns what was torn down."""
    monkeypatch.setattr(paths, "RUN", tmp_path)
    monkeypatch.setattr(ownership, "OWNER_FILE", tmp_path / "owner.json")
    monkeypatch.setattr(paths, "CHECKOUT", HERE)
    monkeypatch.setattr(processes, "all_running", dict)
    monkeypatch.setattr(teardown, "leftovers", lambda checkout: [f"link of {checkout}"])
    monkeypatch.setattr(preflight, "UNUSED", ())
    torn_down = []
    monkeypatch.setattr(teardown, "end_cluster", torn_down.append)
    return torn_down


def free(*, take_over):
    lifecycle.free_machine(lifecycle.decide(take_over=take_over))


def owned_by(checkout, monkeypatch):
    with monkeypatch.context() as there:
        there.setattr(paths, "CHECKOUT", checkout)
        ownership.claim()


def test_a_claim_is_read_back(machine, monkeypatch):
    assert ownership.owner() is None
    owned_by(THERE, monkeypatch)
    assert ownership.owner() == THERE


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"checkout": 1}'])
def test_a_half_written_owner_file_names_nobody(machine, content):
    ownership.OWNER_FILE.write_text(content)
    assert ownership.owner() is None


def test_a_living_cluster_of_another_checkout_is_left_alone(machine, monkeypatch):
    owned_by(THERE, monkeypatch)
    monkeypatch.setattr(processes, "all_running", lambda: {"etcd": 1})
    with pytest.raises(ClusterError, match="belongs to /src/there: stop it there"):
        free(take_over=False)
    with pytest.raises(ClusterError, match="belongs to /src/there: stop it there"):
        lifecycle.down()
    assert machine == []


def test_a_living_cluster_is_taken_over_when_asked(machine, monkeypatch, capsys):
    owned_by(THERE, monkeypatch)
    monkeypatch.setattr(processes, "all_running", lambda: {"etcd": 1})
    free(take_over=True)
    assert machine == [THERE]
    assert "Ending the cluster of /src/there" in capsys.readouterr().out


def test_a_dead_cluster_is_cleaned_up_and_said_so(machine, monkeypatch, capsys):
    owned_by(THERE, monkeypatch)
    free(take_over=False)
    assert machine == [THERE]
    assert "the cluster of /src/there ended without `down`" in capsys.readouterr().out


def test_a_clean_machine_is_not_cleaned(machine, monkeypatch, capsys):
    monkeypatch.setattr(teardown, "leftovers", lambda checkout: [])
    free(take_over=False)
    assert machine == []
    assert capsys.readouterr().out == ""


def test_down_says_what_does_not_go_away(machine):
    with pytest.raises(ClusterError, match="these stay behind:\n  - link of /src/here"):
        lifecycle.down()


def test_commands_do_not_overlap(monkeypatch):
    monkeypatch.setattr(paths, "NAME", "llm-operator-dev-unit-test")
    taken = pytest.raises(ClusterError, match="another `up` or `down` is at work")
    with ownership.only_command(), taken, ownership.only_command():
        pass
    with ownership.only_command():
        pass
