"""Who waits, who is next, and who is turned away.

Knows bounds, clients and how long sequences take; not what runs them. Clients take turns: each
gets one sequence in, in the order it asked, before any gets a second. Not safe for threads: its
owner holds a lock.
"""

import math
from collections import OrderedDict, deque

from llm_inference.engine.interface import Capacity, EngineFullError
from llm_inference.engine.pace import Rate
from llm_inference.engine.sequence import RunningSequence


class Admission:
    """The queue in front of a batch.

    At most `max_queue` sequences wait beyond those that have a free place, and if any do, those
    that wait hold at most `queue_tokens` tokens, prompts and longest outputs together.

    Args:
        capacity: the bounds.
    """

    def __init__(self, capacity: Capacity) -> None:
        self._places = capacity.max_concurrency
        self._limit = capacity.max_concurrency + capacity.max_queue
        self._token_limit = queue_tokens(capacity)
        self._queues: OrderedDict[str, deque[RunningSequence]] = OrderedDict()
        self._number = 0
        self._tokens = 0
        self._rate = Rate(self._places)

    def __len__(self) -> int:
        return self._number

    def add(self, sequences: list[RunningSequence], occupied: int) -> None:
        """Let the sequences of one request wait, all or none.

        Args:
            sequences: all of the same client.
            occupied: places taken in the batch.

        Raises:
            EngineFullError: there is no room for them.
        """
        tokens = sum(map(_tokens, sequences))
        together = occupied + self._number + len(sequences)
        if together > self._limit:
            raise EngineFullError(self._rate.retry_after(together - self._limit))
        excess = self._tokens + tokens - self._token_limit
        if excess > 0 and together > self._places:
            places = max(1, math.ceil(excess * self._number / max(1, self._tokens)))
            raise EngineFullError(self._rate.retry_after(places), "max_num_queued_tokens")
        self._queues.setdefault(sequences[0].client, deque()).extend(sequences)
        self._number += len(sequences)
        self._tokens += tokens

    def pop(self) -> RunningSequence | None:
        """The next sequence; its client is then the last to have another turn."""
        if not self._queues:
            return None
        client, queue = next(iter(self._queues.items()))
        sequence = queue.popleft()
        self._queues.move_to_end(client)
        self._forget(sequence, queue)
        return sequence

    def remove(self, sequence: RunningSequence) -> bool:
        """Take a sequence out; False if it does not wait here."""
        queue = self._queues.get(sequence.client)
        if queue is None or sequence not in queue:
            return False
        queue.remove(sequence)
        self._forget(sequence, queue)
        return True

    def clear(self) -> list[RunningSequence]:
        """Take all sequences out."""
        waiting = [sequence for queue in self._queues.values() for sequence in queue]
        self._queues.clear()
        self._number = self._tokens = 0
        return waiting

    def note_finished(self, seconds: float) -> None:
        """A sequence finished after so many seconds in the batch."""
        self._rate.note(seconds / self._places)

    def _forget(self, sequence: RunningSequence, queue: deque[RunningSequence]) -> None:
        if not queue:
            del self._queues[sequence.client]
        self._number -= 1
        self._tokens -= _tokens(sequence)


def queue_tokens(capacity: Capacity) -> int:
    """Tokens that may wait: what is set, else a quarter of what `max_queue` sequences could hold.

    One request of the greatest length always may.
    """
    if capacity.max_queue_tokens is not None:
        return capacity.max_queue_tokens
    return max(capacity.max_length, capacity.max_queue * capacity.max_length // 4)


def _tokens(sequence: RunningSequence) -> int:
    return len(sequence.prompt) + sequence.max_tokens
