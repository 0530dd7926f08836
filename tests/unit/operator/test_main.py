"""How the process ends when it cannot begin."""

import logging
import socket

import pytest

from llm_operator import __main__ as entry
from llm_operator.process import Exit


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No settings but those of the test, and the test's log again afterwards."""
    for name in ("NAMESPACE", "STANDALONE", "HEALTH_PORT"):
        monkeypatch.delenv(f"LLM_OPERATOR_{name}", raising=False)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], level = before
    root.setLevel(level)
    logging.captureWarnings(capture=False)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LOG_FORMAT", "xml", 'LLM_OPERATOR_LOG_FORMAT="xml"'),
        ("LEADER", "me", "LLM_OPERATOR_LEADER is not a setting"),
        ("LOG_LEVEL", "info", "LLM_OPERATOR_NAMESPACE is not set"),
    ],
)
def test_a_wrong_setting_ends_it_with_one_sentence(monkeypatch, capsys, name, value, said):
    monkeypatch.setenv(f"LLM_OPERATOR_{name}", value)
    assert entry.main() == Exit.BAD_SETTING == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("llm-operator: ")
    assert said in line


def test_a_port_that_is_taken_ends_it_with_one_sentence(monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        monkeypatch.setenv("LLM_OPERATOR_HEALTH_PORT", str(taken.getsockname()[1]))
        monkeypatch.setenv("LLM_OPERATOR_STANDALONE", "true")
        assert entry.main() == Exit.FAILED == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot begin" in line
    assert "address already in use" in line


def test_every_exit_code_is_told_where_the_program_is_described():
    for code in Exit:
        assert f"{code.value} " in (entry.__doc__ or "")
