"""A container of an image, from its start to SIGTERM."""

import time

import pytest

SERVING_SECONDS = 60


@pytest.fixture
def container(cpu, run_container):
    with run_container(cpu) as started:
        yield started


def test_the_health_check_is_true_once_it_serves_and_sigterm_ends_it(cpu, container):
    check = cpu.config["config"]["Healthcheck"]["Test"][1:]
    began = time.monotonic()
    answers = []
    while not answers or answers[-1] != 0:
        assert time.monotonic() - began < SERVING_SECONDS
        assert container.process.poll() is None, container.process.stderr.read()
        answers.append(container.execute(*check))
    assert answers[0] != 0  # not before it serves
    code, errors = container.stop()
    assert code == 0, errors


def test_processes_that_were_left_behind_are_reaped(container):
    # A child that outlives its parent becomes the server's.
    code = "import os, time; os.fork() or (time.sleep(0.3), os._exit(0))"
    began = time.monotonic()
    while container.execute("python", "-c", code):
        assert time.monotonic() - began < SERVING_SECONDS
    states = (
        "import pathlib, sys; "
        "found = [p.read_text() for p in pathlib.Path('/proc').glob('[0-9]*/stat')]; "
        "sys.exit(any(text.rsplit(')')[-1].split()[0] == 'Z' for text in found))"
    )
    time.sleep(1)
    assert container.execute("python", "-c", states) == 0


def test_a_setting_that_is_wrong_is_one_sentence(cpu):
    done = cpu.run("python", "-m", "llm_inference", options=("--env", "LLM_PORT=many"))
    assert done.returncode == 2
    assert "LLM_PORT" in done.stderr.splitlines()[-1]


def test_another_model_than_the_one_asked_for_is_refused(cpu):
    done = cpu.run("python", "-m", "llm_inference", options=("--env", "LLM_MODEL_ID=org/other"))
    assert done.returncode == 3
    assert "LLM_MODEL_ID is org/other" in done.stderr


def test_the_operator_starts(operator):
    done = operator.run("python", "-m", "llm_operator", options=("--env", "LLM_OPERATOR_X=1"))
    # No cluster is reachable from here: that it says so means that all of it was imported.
    assert done.returncode != 0
    assert "ModuleNotFoundError" not in done.stderr
