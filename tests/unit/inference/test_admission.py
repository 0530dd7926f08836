"""Who waits, who is next, who is turned away and for how long."""

from types import SimpleNamespace

import pytest

from llm_inference.engine.admission import Admission, queue_tokens
from llm_inference.engine.interface import Capacity, EngineFullError

CAPACITY = Capacity(
    max_length=100, max_concurrency=4, max_queue=6, vocabulary=10, max_queue_tokens=200
)


def sequences(client="", number=1, prompt=5, max_tokens=5):
    return [
        SimpleNamespace(client=client, prompt=[1] * prompt, max_tokens=max_tokens)
        for _ in range(number)
    ]


def order(admission):
    clients = []
    while (sequence := admission.pop()) is not None:
        clients.append(sequence.client)
    return "".join(clients)


def test_clients_take_turns_however_much_each_asks():
    admission = Admission(CAPACITY)
    for client in "aaaabcb":
        admission.add(sequences(client), occupied=0)
    assert order(admission) == "abcabaa"
    assert len(admission) == 0


def test_a_client_that_comes_later_waits_for_one_turn_of_each():
    admission = Admission(CAPACITY)
    admission.add(sequences("a", 4), occupied=0)
    assert admission.pop().client == "a"
    admission.add(sequences("b"), occupied=1)
    assert order(admission) == "abaa"


def test_one_clients_requests_keep_their_order():
    admission = Admission(CAPACITY)
    first, second = sequences("a"), sequences("a")
    admission.add(first, occupied=0)
    admission.add(second, occupied=0)
    assert [admission.pop(), admission.pop()] == [*first, *second]


def test_places_are_bounded():
    admission = Admission(CAPACITY)
    admission.add(sequences(number=6, prompt=1, max_tokens=1), occupied=4)
    with pytest.raises(EngineFullError):
        admission.add(sequences(), occupied=4)
    admission.add(sequences(prompt=1), occupied=3)
    assert len(admission) == 7


@pytest.mark.parametrize(("number", "fits"), [(3, True), (4, False)])
def test_all_choices_of_a_request_fit_or_none(number, fits):
    admission = Admission(CAPACITY)
    admission.add(sequences(number=3, prompt=1, max_tokens=1), occupied=4)
    if fits:
        admission.add(sequences(number=number, prompt=1, max_tokens=1), occupied=4)
    else:
        with pytest.raises(EngineFullError):
            admission.add(sequences(number=number, prompt=1, max_tokens=1), occupied=4)
    assert len(admission) == (6 if fits else 3)


def test_tokens_that_wait_are_bounded():
    admission = Admission(CAPACITY)
    admission.add(sequences(prompt=60, max_tokens=40), occupied=4)
    admission.add(sequences(prompt=60, max_tokens=40), occupied=4)
    with pytest.raises(EngineFullError):
        admission.add(sequences(prompt=1, max_tokens=1), occupied=4)
    admission.pop()
    admission.add(sequences(prompt=1, max_tokens=1), occupied=4)


def test_a_request_larger_than_the_bound_does_not_wait():
    admission = Admission(CAPACITY)
    with pytest.raises(EngineFullError):
        admission.add(sequences(number=3, prompt=60, max_tokens=40), occupied=3)
    admission.add(sequences(number=3, prompt=60, max_tokens=40), occupied=0)


def test_tokens_of_what_starts_at_once_do_not_count():
    admission = Admission(CAPACITY)
    for _ in range(4):
        admission.add(sequences(prompt=60, max_tokens=40), occupied=0)
    assert len(admission) == 4
    with pytest.raises(EngineFullError):
        admission.add(sequences(prompt=60, max_tokens=40), occupied=0)


def test_what_leaves_the_queue_makes_room_for_its_tokens():
    admission = Admission(CAPACITY)
    large = sequences("a", prompt=60, max_tokens=40)
    admission.add(large, occupied=4)
    admission.add(sequences("b", prompt=60, max_tokens=40), occupied=4)
    assert admission.remove(large[0])
    assert not admission.remove(large[0])
    admission.add(sequences("c", prompt=60, max_tokens=40), occupied=4)
    assert order(admission) == "bc"


def test_unset_the_bound_holds_the_longest_request():
    small = Capacity(max_length=100, max_concurrency=1, max_queue=1, vocabulary=10)
    assert queue_tokens(small) == 100
    assert queue_tokens(Capacity(**{**vars(small), "max_queue": 64})) == 1600
    assert queue_tokens(CAPACITY) == 200


@pytest.mark.parametrize(("seconds", "places", "expected"), [(8, 1, 2), (8, 6, 12), (0.1, 1, 1)])
def test_when_to_try_again_follows_the_rate_of_finishing(seconds, places, expected):
    # Four places and `seconds` for each sequence are 4 / seconds sequences a second.
    admission = Admission(CAPACITY)
    for _ in range(50):
        admission.note_finished(seconds)
    admission.add(sequences(number=6, prompt=1, max_tokens=1), occupied=4)
    with pytest.raises(EngineFullError) as refusal:
        admission.add(sequences(number=places, prompt=1, max_tokens=1), occupied=4)
    assert refusal.value.retry_after == expected


def test_the_rate_follows_what_happens_lately():
    admission = Admission(CAPACITY)
    for seconds in [1.0] * 50 + [40.0] * 50:
        admission.note_finished(seconds)
    admission.add(sequences(number=6, prompt=1, max_tokens=1), occupied=4)
    with pytest.raises(EngineFullError) as refusal:
        admission.add(sequences(), occupied=4)
    assert refusal.value.retry_after == 10
