"""What a step of the model takes and gives: the protocol between the scheduler and a runner.

Knows rows, positions and how tokens are to be chosen. Knows no torch, no model and no requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from llm_inference.engine.interface import SamplingParams


class Matcher(Protocol):
    """One sequence's way through a grammar."""

    error: str | None
    """Why it cannot go on; None while it can."""

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing can follow."""

    def write_mask(self, address: int, size: int) -> None:
        """Write which tokens may come next: `size` bytes at `address`, a bit for each token id.

        Bits are in 32-bit words, the lowest first.
        """

    def accept(self, token: int) -> bool:
        """Go on by `token`; False, and an `error`, if the grammar does not allow it."""


@dataclass(eq=False, slots=True, kw_only=True)
class Draw:
    """How the next token of one sequence is chosen; lives as long as the sequence and grows.

    Attributes:
        sampling: the parameters.
        seed: 64 bits that its choices depend on.
        step: how many tokens the sequence has generated so far.
        prompt: token ids before those.
        tokens: the generated token ids; penalties look at them.
        logprobs: None for none, else how many most likely tokens to tell beside the chosen one.
        matcher: what the tokens must keep to.
        memory: what `sampling` keeps from step to step; nobody else's business.
    """

    sampling: SamplingParams
    seed: int
    step: int = 0
    prompt: Sequence[int] = ()
    tokens: list[int] = field(default_factory=list)
    logprobs: int | None = None
    matcher: Matcher | None = None
    memory: object | None = None
    argmax: bool = field(init=False)
    plain: bool = field(init=False)

    def __post_init__(self) -> None:
        sampling = self.sampling
        # The model's most likely token is taken, whatever it is; and nothing else is asked for.
        self.argmax = (
            sampling.greedy
            and not sampling.logit_bias
            and not self.penalizes
            and self.matcher is None
        )
        self.plain = self.argmax and self.logprobs is None

    @property
    def penalizes(self) -> bool:
        """Whether the choice depends on the tokens before."""
        sampling = self.sampling
        return (
            sampling.presence_penalty != 0.0
            or sampling.frequency_penalty != 0.0
            or sampling.repetition_penalty != 1.0
        )

    def advance(self, token: int) -> None:
        """Go on to the next step, by `token`."""
        self.tokens.append(token)
        self.step += 1


class Choice(NamedTuple):
    """A chosen token; with `Draw.logprobs`, its log probability and the most likely tokens'.

    `top` is (token id, log probability) in falling order.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Runner(Protocol):
    """The model and its cache, seen from the scheduler.

    Attributes:
        prefill_chunk: most prompt tokens that one forward pass reads.
        rows: sequences the cache holds; those beyond the size of a batch keep prefixes.
        asynchronous: whether `decode` returns while the device still works. What it returns is
            then read later, and the host has time for other things until then.
    """

    prefill_chunk: int
    rows: int
    asynchronous: bool

    def prefill(
        self, row: int, tokens: Sequence[int], start: int, draw: Draw | None
    ) -> Choice | None:
        """Read `tokens` at positions `start`... into `row`; with `draw`, choose the next token.

        None means that the logits are not finite, or that no token was asked for.
        """

    def decode(
        self, first_row: int, tokens: Sequence[int], positions: Sequence[int], draws: Sequence[Draw]
    ) -> Sequence[Choice | None]:
        """One step for rows `first_row`...: write each token at its position, choose the next.

        None in place of a choice means that the row's logits are not finite. Reading the result
        waits for the device.
        """

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of row `source` to row `target`."""

    def clear(self, row: int) -> None:
        """Forget what a row holds: no number in it that is not finite may reach its next user."""
