"""Log lines: one line of JSON each, whatever is logged, or text for people."""

import json
import logging
import subprocess
import sys

import pytest

from llm_inference import logs


def record(message="hello", *arguments, **more):
    return logging.makeLogRecord(
        {"name": "n", "levelname": "INFO", "msg": message, "args": arguments, **more}
    )


def test_a_line_of_json():
    line = logs.JsonFormatter().format(record("%d of %s", 3, "a\nb", created=0.0))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.000Z",
        "level": "info",
        "logger": "n",
        "message": "3 of a\nb",
    }


def test_fields_are_fields_and_none_is_left_out():
    fields = logs.fields(status=200, client=None)
    line = json.loads(logs.JsonFormatter().format(record(**fields)))
    assert line["status"] == 200
    assert "client" not in line
    assert logs.TextFormatter().format(record(**fields)).endswith(" INFO n: hello status=200")


def test_a_traceback_stays_on_the_line():
    try:
        int("why")
    except ValueError:
        failure = sys.exc_info()
    line = logs.JsonFormatter().format(record(exc_info=failure))
    assert "\n" not in line
    assert "ValueError: invalid literal" in json.loads(line)["exception"]


def test_what_is_logged_for_a_request_says_which():
    token = logs.request_id.set("r1")
    try:
        assert json.loads(logs.JsonFormatter().format(record()))["request_id"] == "r1"
        assert logs.TextFormatter().format(record()).endswith(" request_id=r1")
    finally:
        logs.request_id.reset(token)
    assert "request_id" not in json.loads(logs.JsonFormatter().format(record()))


def test_libraries_that_set_up_their_own_logs_write_like_all_others():
    code = (
        "from llm_inference import logs; logs.configure('info', 'json');"
        "from transformers.utils import logging; from huggingface_hub import utils;"
        "logging.get_logger('transformers.x').warning('one');"
        "utils.logging.get_logger('huggingface_hub.y').warning('two');"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert [line["message"] for line in lines] == ["one", "two"]


@pytest.mark.parametrize("form", ["auto", "json", "text"])
def test_all_loggers_write_in_one_form(form):
    code = (
        "import logging, warnings; from llm_inference import logs;"
        f"logs.configure('info', {form!r});"
        "logging.getLogger('a').info('one');"
        "logging.getLogger('a').debug('not');"
        "logging.getLogger('uvicorn.error').info('not');"
        "logging.getLogger('uvicorn.error').warning('two');"
        "warnings.warn('three')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "not" not in result.stderr
    if form == "text":
        assert "INFO a: one" in result.stderr
    else:  # standard error is no terminal here
        lines = [json.loads(line) for line in result.stderr.splitlines()]
        assert [line["message"].split()[-1] for line in lines[:2]] == ["one", "two"]
        assert "three" in lines[2]["message"]
        assert [line["logger"] for line in lines] == ["a", "uvicorn.error", "py.warnings"]
