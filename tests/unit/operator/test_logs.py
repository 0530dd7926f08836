import asyncio
import io
import json
import logging

import pytest

from llm_operator import logs


@pytest.fixture
def written(monkeypatch):
    """Configures the log and gives what was written since."""
    root = logging.getLogger()
    before = root.handlers[:], root.level

    def configure(form, level="info"):
        stream = io.StringIO()
        monkeypatch.setattr("sys.stderr", stream)
        logs.configure(form, level)
        return stream.getvalue

    yield configure
    root.handlers[:], level = before
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def fail():
    message = "broken\nin two"
    raise OSError(message)


def test_json_is_one_object_a_line_even_with_a_traceback(written):
    text = written("json")
    with logs.about(("models", "a")):
        try:
            fail()
        except OSError:
            logging.getLogger("x").exception("failed:\n%s", "why")
    logging.getLogger("kopf").warning("about nothing")
    first, second = map(json.loads, text().splitlines())
    assert first["message"] == "failed:\nwhy"
    assert (first["namespace"], first["name"]) == ("models", "a")
    assert first["level"] == "error"
    assert first["exception"].startswith("Traceback")
    assert "broken\nin two" in first["exception"]
    assert second.keys() == {"time", "level", "logger", "message"}
    assert second["time"].endswith("Z")


def test_text_begins_with_the_key_once(written):
    text = written("text")
    with logs.about(("models", "a")):
        logging.getLogger("x").info("applied")
        logging.getLogger("x").info("models/a: applied")
    logging.getLogger("x").info("about nothing")
    lines = [line.partition("] ")[2].partition("] ")[2] for line in text().splitlines()]
    assert lines == ["models/a: applied", "models/a: applied", "about nothing"]


def test_json_does_not_repeat_the_key_in_the_message(written):
    text = written("json")
    with logs.about(("models", "a")):
        logging.getLogger("x").info("models/a: applied")
    assert json.loads(text())["message"] == "applied"


def test_kopfs_messages_about_an_object_carry_its_key(written):
    text = written("json")
    reference = {"kind": "Pod", "namespace": "models", "name": "a-1"}
    logging.getLogger("kopf.objects").error("handler failed", extra={"k8s_ref": reference})
    line = json.loads(text())
    assert (line["namespace"], line["name"]) == ("models", "a-1")


def test_an_object_without_a_namespace_has_a_name(written):
    text = written("text")
    logging.getLogger("x").error("gone", extra={"k8s_ref": {"name": "node-1", "namespace": None}})
    assert text().endswith("] node-1: gone\n")


async def test_work_on_two_objects_at_once_is_told_apart(written):
    text = written("json")

    async def work(name):
        with logs.about(("models", name)):
            for _ in range(3):
                await asyncio.sleep(0)
                logging.getLogger("x").info("%s", name)

    await asyncio.gather(work("a"), work("b"))
    lines = list(map(json.loads, text().splitlines()))
    assert len(lines) == 6
    assert all(line["name"] == line["message"] for line in lines)


@pytest.mark.parametrize(("level", "count"), [("error", 0), ("info", 1)])
def test_the_level_holds(written, level, count):
    text = written("text", level)
    logging.getLogger("x").info("hello")
    assert text().count("hello") == count
