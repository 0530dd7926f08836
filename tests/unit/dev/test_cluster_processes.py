"""Pid files name a process for good: a recycled pid is never taken for the cluster's."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest

from dev.cluster import cgroups, lifecycle, paths, processes
from dev.cluster.commands import ClusterError
from dev.cluster.processes import Component


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RUN", tmp_path)
    monkeypatch.setattr(paths, "CLUSTER", tmp_path)
    monkeypatch.setattr(paths, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(cgroups, "adopt", lambda pid: None)
    return tmp_path


def record(folder, identity):
    (folder / "thing.pid").write_text(json.dumps(dataclasses.asdict(identity)))


def component(code, *, healthy=lambda: True):
    return Component(name="thing", argv=[sys.executable, "-c", code], healthy=healthy)


def until_printed(log, word):
    deadline = time.monotonic() + 10
    while word not in log.read_text():
        assert time.monotonic() < deadline, f"{word} is not in {log}"
        time.sleep(0.01)


def test_a_recorded_process_that_runs_is_found(folders):
    record(folders, processes.identity(os.getpid()))
    assert processes.running("thing") == os.getpid()
    assert processes.all_running() == {"thing": os.getpid()}


@pytest.mark.parametrize("change", [{"began": 1}, {"boot": "another boot"}])
def test_a_recycled_pid_is_somebody_else(folders, change):
    record(folders, dataclasses.replace(processes.identity(os.getpid()), **change))
    assert processes.running("thing") is None
    processes.stop("thing")  # would end this very test if it took us for the component
    assert not (folders / "thing.pid").exists()


@pytest.mark.parametrize("content", ["", "{", '{"pid": 1}', "[]", "17", '{"what": 2}'])
def test_a_half_written_pid_file_names_nobody(folders, content):
    (folders / "thing.pid").write_text(content)
    assert processes.running("thing") is None


def test_a_zombie_does_not_run():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert processes.identity(child.pid) is None


def test_nobody_has_no_identity():
    assert processes.identity(2**22 + 1) is None


def test_a_component_starts_once_in_a_session_of_its_own_and_stops():
    sleeper = component("import time; time.sleep(60)")
    processes.start(sleeper)
    pid = processes.running("thing")
    assert os.getsid(pid) == pid
    processes.start(sleeper)
    assert processes.running("thing") == pid
    processes.stop("thing")
    assert processes.identity(pid) is None
    assert processes.running("thing") is None


def test_configuration_is_written_before_a_start_and_never_under_a_running_component(folders):
    config = folders / "config" / "thing.json"
    sleeper = component("import time; time.sleep(60)")
    processes.start(dataclasses.replace(sleeper, files={config: "first"}))
    processes.start(dataclasses.replace(sleeper, files={config: "second"}))
    assert config.read_text() == "first"
    processes.stop("thing")


def test_a_component_that_ignores_sigterm_is_killed():
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True)"
    processes.start(component(f"{code}; time.sleep(60)"))
    until_printed(component("").log, "1")
    pid = processes.running("thing")
    processes.stop("thing", grace=0.1)
    assert processes.identity(pid) is None


def test_a_paused_component_stays_until_it_is_resumed():
    counter = (
        "import itertools, time\nfor i in itertools.count(): print(i, flush=True); time.sleep(.01)"
    )
    processes.start(component(counter))
    until_printed(component("").log, "1")
    pid = processes.running("thing")
    processes.pause("thing")
    until_paused()
    assert processes.running("thing") == pid
    printed = component("").log.read_text()
    time.sleep(0.1)
    assert component("").log.read_text() == printed
    processes.resume("thing")
    until_printed(component("").log, f"\n{len(printed.split()) + 1}\n")
    assert not processes.paused("thing")
    processes.stop("thing")


def until_paused():
    deadline = time.monotonic() + 10
    while not processes.paused("thing"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_starting_a_paused_component_lets_it_go_on():
    sleeper = component("import time; time.sleep(60)")
    processes.start(sleeper)
    pid = processes.running("thing")
    processes.pause("thing")
    until_paused()
    processes.start(sleeper)
    assert processes.running("thing") == pid
    assert not processes.paused("thing")
    processes.stop("thing")


def test_a_paused_component_that_is_stopped_ends_in_its_own_way():
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(print('bye', flush=True)))"
    )
    processes.start(component(f"{code}; print('up', flush=True); time.sleep(60)"))
    until_printed(component("").log, "up")
    processes.pause("thing")
    until_paused()
    processes.stop("thing")
    assert component("").log.read_text() == "up\nbye\n"


@pytest.mark.parametrize("act", [processes.pause, processes.resume])
def test_what_does_not_run_is_neither_paused_nor_resumed(act):
    assert not processes.paused("thing")
    with pytest.raises(ClusterError, match="thing does not run"):
        act("thing")


def test_the_state_of_a_component_is_said_in_a_word():
    serving, deaf = component("import time; time.sleep(60)"), component("", healthy=lambda: False)
    assert lifecycle.state(serving) == "stopped"
    processes.start(serving)
    assert lifecycle.state(serving) == "serves"
    assert lifecycle.state(deaf) == "does not serve"
    processes.pause("thing")
    until_paused()
    assert lifecycle.state(deaf) == "paused"
    processes.stop("thing")


def test_a_component_that_ends_is_reported_with_its_last_words():
    broken = component("raise SystemExit('no such flag')", healthy=lambda: False)
    processes.start(broken)
    with pytest.raises(ClusterError, match=r"thing ended\.(.|\n)*no such flag"):
        processes.wait_healthy(broken)


def test_a_component_that_does_not_serve_in_time_is_reported():
    deaf = component("import time; time.sleep(60)", healthy=lambda: False)
    processes.start(deaf)
    try:
        with pytest.raises(ClusterError, match="thing does not serve after 0 s"):
            processes.wait_healthy(deaf, timeout=0.2)
    finally:
        processes.stop("thing")


def test_the_log_of_the_run_before_is_kept():
    for word in ("first", "second"):
        processes.start(component(f"import time; print('{word}', flush=True); time.sleep(60)"))
        log = component("").log
        until_printed(log, word)
        processes.stop("thing")
    assert log.with_suffix(".log.1").read_text() == "first\n"
