"""Texts that keep to a grammar, by llguidance: which tokens may come next.

Knows grammars and the tokenizer. Does not know logits: a matcher writes bits, and who chooses a
token heeds them. llguidance is imported with the first grammar; its view of the tokenizer takes
about a second then.
"""

import json
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from llm_inference.engine.interface import Grammar, GrammarError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

_LONGEST_SOURCE = 128 * 1024
_KEPT = 32
_LONGEST_MESSAGE = 300
# Bounded, because a model may well like white space so much that it never gets any further.
_WHITESPACE = r"[ \t\n]{0,16}"


class GrammarCompiler:
    """Compiles grammars for one model, and keeps the latest.

    Args:
        tokenizer: gives the tokenizer as JSON, as the tokenizers library writes it.
        vocabulary: width of the model's logits.
        eos: token ids that end a text.
    """

    def __init__(
        self, *, tokenizer: Callable[[], str], vocabulary: int, eos: frozenset[int]
    ) -> None:
        self._tokenizer_json = tokenizer
        self._vocabulary = vocabulary
        self._eos = sorted(eos)
        self._tokenizer: LLTokenizer | None = None
        # One at a time: however many are asked for, they take one processor.
        self._lock = threading.Lock()
        self._compiled = lru_cache(maxsize=_KEPT)(self._compile)

    def compile(self, grammar: Grammar) -> "CompiledGrammar":
        """Make a grammar ready for requests; in any thread.

        Raises:
            GrammarError: it is malformed, too large, or asks for what cannot be kept to.
        """
        if len(grammar.source) > _LONGEST_SOURCE:
            raise GrammarError(f"it is longer than {_LONGEST_SOURCE} characters")
        with self._lock:
            return self._compiled(grammar)

    def _compile(self, grammar: Grammar) -> "CompiledGrammar":
        from llguidance import LLMatcher  # noqa: PLC0415 - only who asks for a grammar needs it

        try:
            source = _source(grammar)
        except GrammarError:
            raise
        except Exception as error:
            raise GrammarError(_sentence(str(error))) from error
        matcher = LLMatcher(self._view(), source, log_level=0, limits=_limits())
        if matcher.is_error():
            raise GrammarError(_sentence(matcher.get_error()))
        return CompiledGrammar(matcher)

    def _view(self) -> "LLTokenizer":
        """The tokenizer as llguidance sees it."""
        if self._tokenizer is None:
            from llguidance import LLTokenizer  # noqa: PLC0415 - see above

            try:
                self._tokenizer = LLTokenizer(
                    self._tokenizer_json(), n_vocab=self._vocabulary, eos_token=self._eos or None
                )
            except Exception as error:
                raise GrammarError("this model's tokenizer cannot be kept to a grammar") from error
        return self._tokenizer


class CompiledGrammar:
    """A grammar that sequences can be kept to; a `Constraint`."""

    def __init__(self, start: "LLMatcher") -> None:
        self._start = start

    def matcher(self) -> "GrammarMatcher":
        """The state of a new sequence, at the grammar's start."""
        return GrammarMatcher(self._start.deep_copy())


class GrammarMatcher:
    """One sequence's way through a grammar; see `step.Matcher`."""

    def __init__(self, matcher: "LLMatcher") -> None:
        self._matcher = matcher
        self.error: str | None = None

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing can follow."""
        return self._matcher.is_stopped()

    def write_mask(self, address: int, size: int) -> None:
        """Write which tokens may come next: `size` bytes at `address`, a bit for each token id."""
        self._matcher.unsafe_compute_mask_ptr(address, size)
        if self._matcher.is_error():
            self._note_error()

    def accept(self, token: int) -> bool:
        """Go on by `token`; False, and an `error`, if the grammar does not allow it."""
        if self.error is None and not self._matcher.consume_token(token):
            self._note_error()
        return self.error is None

    def _note_error(self) -> None:
        self.error = _sentence(self._matcher.get_error()) or "it allows no further token"


def _source(grammar: Grammar) -> str:
    """A grammar in llguidance's own form."""
    from llguidance import LLMatcher  # noqa: PLC0415 - see above

    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.source)
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.source)
    if grammar.kind == "choice":
        return LLMatcher.grammar_from_lark(_choice(_parse(grammar.source)))
    schema = _parse(grammar.source if grammar.kind == "json_schema" else '{"type": "object"}')
    if not isinstance(schema, dict | bool):
        raise GrammarError("a JSON schema is an object")
    return LLMatcher.grammar_from_json_schema(
        json.dumps(schema), defaults={"whitespace_pattern": _WHITESPACE}
    )


def _parse(source: str) -> object:
    try:
        parsed: object = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise GrammarError("it is not JSON") from error
    return parsed


def _choice(choices: object) -> str:
    """Lark for one of these texts."""
    if not isinstance(choices, list) or not choices:
        raise GrammarError("a choice is a list of one text or more")
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise GrammarError("each choice is a text that is not empty")
    return "start: " + " | ".join(json.dumps(choice) for choice in choices)


def _limits() -> "LLParserLimits":
    """What a grammar may cost: a second or so to compile, some milliseconds a token, 100 MB."""
    from llguidance import LLParserLimits  # noqa: PLC0415 - see above

    return LLParserLimits(max_lexer_states=50_000, max_grammar_size=200_000, verbose_errors=False)


def _sentence(message: str) -> str:
    """The first line of llguidance's error, which may be long."""
    line = message.strip().partition("\n")[0]
    return line if len(line) <= _LONGEST_MESSAGE else line[:_LONGEST_MESSAGE] + "…"
