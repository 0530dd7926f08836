import asyncio
import logging
import time

import pytest

from llm_operator import workqueue
from llm_operator.workqueue import Retry, WorkQueue


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(workqueue, "_FIRST_RETRY_SECONDS", 0.001)


async def settled(queue):
    """Wait until nothing runs; what is only planned for later does not count."""
    for _ in range(1000):
        await asyncio.sleep(0.001)
        if not len(queue):
            return
    pytest.fail("the queue never became idle")


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.001)
    pytest.fail("never happened")


async def test_works_on_each_key():
    seen = []

    async def work(key):
        seen.append(key)

    queue = WorkQueue(work)
    queue.add("a")
    queue.add("b")
    await settled(queue)
    assert seen == ["a", "b"]


async def test_a_key_is_never_worked_on_twice_at_once_and_no_change_is_missed():
    running, most, seen = 0, 0, 0
    started, go_on = asyncio.Event(), asyncio.Event()

    async def work(key):
        nonlocal running, most, seen
        seen += 1
        running += 1
        most = max(most, running)
        started.set()
        await go_on.wait()
        running -= 1

    queue = WorkQueue(work)
    queue.add("a")
    await started.wait()
    for _ in range(10):
        queue.add("a")
    go_on.set()
    await settled(queue)
    assert most == 1
    assert seen == 2, "ten changes during the work are one more time to work"


async def test_what_happens_to_a_key_that_rests_is_one_more_turn(monkeypatch):
    monkeypatch.setattr(workqueue, "_REST_SECONDS", 0.05)
    turns = []

    async def work(key):
        turns.append(time.monotonic())

    queue = WorkQueue(work)
    queue.add("a")
    await until(lambda: turns)
    for _ in range(10):
        queue.add("a")
        await asyncio.sleep(0.001)
    assert queue.load()[0] == len(queue) == 1
    await settled(queue)
    assert len(turns) == 2
    assert turns[1] - turns[0] >= 0.05
    await asyncio.sleep(0.1)
    assert len(turns) == 2


async def test_a_key_does_not_wait_for_the_rest_of_another(monkeypatch):
    monkeypatch.setattr(workqueue, "_REST_SECONDS", 60)
    seen = []

    async def work(key):
        seen.append(key)

    queue = WorkQueue(work, limit=1)
    for key in "abc":
        queue.add(key)
        await settled(queue)
    assert seen == ["a", "b", "c"]


async def test_keys_are_worked_on_at_the_same_time_up_to_the_limit():
    running, most = 0, 0

    async def work(key):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1

    queue = WorkQueue(work, limit=3)
    for key in range(9):
        queue.add(key)
    await settled(queue)
    assert most == 3


@pytest.mark.usefixtures("impatient")
async def test_a_failure_is_tried_again_until_it_succeeds(caplog):
    attempts = 0

    async def work(key):
        nonlocal attempts
        attempts += 1
        if attempts < 4:
            msg = "broken"
            raise OSError(msg)

    queue = WorkQueue(work)
    queue.add(("models", "a"))
    await until(lambda: attempts == 4)
    await settled(queue)
    assert queue.failures(("models", "a")) == 0
    assert "failed; next try" in caplog.text
    assert "OSError: broken" in caplog.text


@pytest.mark.usefixtures("impatient")
async def test_waiting_is_told_once_and_without_a_traceback(caplog):
    caplog.set_level(logging.INFO)
    attempts = 0

    async def work(key):
        nonlocal attempts
        attempts += 1
        if attempts < 4:
            msg = "waiting for a quota"
            raise Retry(msg)

    queue = WorkQueue(work)
    queue.add("a")
    await until(lambda: attempts == 4)
    assert caplog.text.count("waiting for a quota") == 1
    assert "Traceback" not in caplog.text


async def test_the_time_between_tries_grows_to_a_limit(monkeypatch):
    async def work(key):
        msg = "broken"
        raise OSError(msg)

    queue = WorkQueue(work)
    delays = [queue._delay_after_failure("a") for _ in range(12)]
    assert delays[:4] == [0.25, 0.5, 1, 2]
    assert delays[-1] == 60


async def test_work_may_ask_to_be_called_again():
    seen = 0

    async def work(key):
        nonlocal seen
        seen += 1
        return 0.001 if seen < 3 else None

    queue = WorkQueue(work)
    queue.add("a")
    await until(lambda: seen == 3)


async def test_a_change_does_not_wait_for_the_planned_retry():
    seen = 0

    async def work(key):
        nonlocal seen
        seen += 1
        return 60

    queue = WorkQueue(work)
    queue.add("a")
    await settled(queue)
    queue.add("a")
    await settled(queue)
    assert seen == 2
    await queue.close()


async def test_closing_stops_what_runs():
    stopped = asyncio.Event()

    async def work(key):
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    queue = WorkQueue(work)
    queue.add("a")
    await asyncio.sleep(0.001)
    await queue.close()
    assert stopped.is_set()
    assert len(queue) == 0


async def test_a_closed_queue_begins_nothing():
    seen = []

    async def work(key):
        seen.append(key)

    queue = WorkQueue(work)
    await queue.close()
    queue.add("a")
    await asyncio.sleep(0.005)
    assert seen == []


async def test_work_under_way_may_end_and_what_waits_is_dropped():
    begun, ended = [], []

    async def work(key):
        begun.append(key)
        await asyncio.sleep(0.02)
        ended.append(key)

    queue = WorkQueue(work, limit=1)
    queue.add("a")
    queue.add("b")
    await until(lambda: begun)
    queue.add("a")
    await queue.close(grace=5)
    assert begun == ended == ["a"]


async def test_the_load_is_told_by_what_waits_runs_and_comes_later():
    go_on = asyncio.Event()

    async def work(key):
        await go_on.wait()
        return 60

    queue = WorkQueue(work, limit=1)
    queue.add("a")
    queue.add("b")
    await asyncio.sleep(0.001)
    assert queue.load() == (1, 1, 0)
    go_on.set()
    await settled(queue)
    assert queue.load() == (0, 0, 2)
    await queue.close()


@pytest.mark.usefixtures("impatient")
async def test_every_attempt_is_observed():
    outcomes = []

    async def work(key):
        if not outcomes:
            raise Retry("waiting")
        if len(outcomes) == 1:
            raise OSError("broken")

    queue = WorkQueue(work, observe=lambda outcome, seconds: outcomes.append((outcome, seconds)))
    queue.add("a")
    await until(lambda: len(outcomes) == 3)
    assert [outcome for outcome, _ in outcomes] == ["waiting", "error", "success"]
    assert all(seconds >= 0 for _, seconds in outcomes)


async def test_an_empty_queue_is_a_queue():
    async def work(_):
        return None

    queue = WorkQueue(work)
    assert len(queue) == 0
    assert queue, "who has an empty queue would think that there is none, and add nothing to it"
