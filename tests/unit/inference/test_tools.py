"""Reading tool calls from a model's text, however it is cut, and the grammars that make them."""

import json
import re

import llguidance
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from llm_inference.tool_formats import CallFormat, detect, read_calls
from llm_inference.tool_grammars import CallableTool, grammar
from llm_inference.tools import CallParser, MadeCall

NAMES = frozenset({"weather", "time"})
PARIS = '{"name": "weather", "arguments": {"city": "Paris"}}'
NOON = '{"name": "time", "arguments": {}}'
TEMPLATES = {
    CallFormat.HERMES: "{% if tools %}<tool_call>{{ tools }}</tool_call>{% endif %}",
    CallFormat.LLAMA: "{% if tools %}<|python_tag|>{% endif %}",
    CallFormat.MISTRAL: "{% if tools %}[AVAILABLE_TOOLS][TOOL_CALLS] [{% endif %}",
    CallFormat.MISTRAL_ARGS: "{% if tools %}[TOOL_CALLS]name[ARGS]{% endif %}",
}


def parse(form, pieces, *, several=True):
    """The text and the (name, arguments) of what a parser gives out, and the parser."""
    parser = CallParser(form, NAMES, several=several)
    out = [item for piece in pieces for item in parser.push(piece)] + parser.finish()
    text = "".join(item for item in out if isinstance(item, str))
    calls = [
        (item.call.name, json.loads(item.call.arguments))
        for item in out
        if isinstance(item, MadeCall)
    ]
    return text, calls, out


@pytest.mark.parametrize(("form", "template"), TEMPLATES.items())
def test_a_format_is_told_from_the_template(form, template):
    assert detect(template) is form


@pytest.mark.parametrize("template", ["", "{{ messages }}", "{{ tools }}", "{{tools}}<function="])
def test_a_template_that_teaches_no_known_format(template):
    assert detect(template) is None


BOTH = [("weather", {"city": "Paris"}), ("time", {})]


@pytest.mark.parametrize(
    ("form", "written", "text"),
    [
        (
            CallFormat.HERMES,
            f"<tool_call>\n{PARIS}\n</tool_call>\n<tool_call>{NOON}</tool_call>",
            "",
        ),
        (CallFormat.HERMES, f"Well. <tool_call>[{PARIS}, {NOON}]</tool_call>", "Well."),
        (CallFormat.HERMES, f"<tool_call>{PARIS}</tool_call><tool_call>{NOON}", ""),
        (CallFormat.LLAMA, f"{PARIS}; {NOON}".replace("arguments", "parameters"), ""),
        (CallFormat.LLAMA, f"<|python_tag|>{PARIS};{NOON}".replace("arguments", "parameters"), ""),
        (CallFormat.MISTRAL, f"[TOOL_CALLS] [{PARIS}, {NOON}]", ""),
        (
            CallFormat.MISTRAL_ARGS,
            '[TOOL_CALLS]weather[ARGS]{"city": "Paris"}[TOOL_CALLS]time[CALL_ID]a1[ARGS]{}',
            "",
        ),
        (
            CallFormat.MISTRAL_ARGS,
            'Hm.[TOOL_CALLS]weather{"city": "Paris"}[TOOL_CALLS]time{}',
            "Hm.",
        ),
    ],
)
@given(data=st.data())
def test_calls_are_read_however_the_text_is_cut(form, written, text, data):
    cuts = sorted(data.draw(st.sets(st.integers(0, len(written)), max_size=8)))
    pieces = [written[a:b] for a, b in zip([0, *cuts], [*cuts, len(written)], strict=True)]
    assert parse(form, pieces)[:2] == (text, BOTH)


@given(st.text(alphabet=st.sampled_from('<tool_cal>/ \n{}"aé'), max_size=60))
def test_what_is_no_call_is_text_to_the_last_character(text):
    told, calls, _ = parse(CallFormat.HERMES, text)
    assert not calls
    assert told == text


@pytest.mark.parametrize(
    "body",
    [
        "not JSON",
        "[]",
        "5",
        '{"name": "unknown", "arguments": {}}',
        '{"name": "weather", "arguments": [1]}',
        '{"name": "weather", "arguments": "text"}',
        '{"name": 5, "arguments": {}}',
        '{"name": ["weather"], "arguments": {}}',
        "[" * 5000,
        '{"name": "weather", "arguments": {"a": "\\ud800"}}',
    ],
)
def test_a_call_that_cannot_be_made_is_text(body):
    text = f"<tool_call>{body}</tool_call>"
    assert parse(CallFormat.HERMES, [text])[:2] == (text, [])


def test_llama_may_answer_with_json_that_is_no_call():
    assert parse(CallFormat.LLAMA, ['{"a', '": 1}'])[:2] == ('{"a": 1}', [])


def test_arguments_in_a_string_are_arguments():
    written = '{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}'
    (call,) = read_calls(written, NAMES)
    assert json.loads(call.arguments) == {"city": "Paris"}


def test_text_before_a_call_does_not_wait_for_it():
    parser = CallParser(CallFormat.HERMES, NAMES, several=True)
    assert parser.push("Let me see <to") == ["Let me see"]
    assert parser.push("ld>") == [" <told>"]


def test_only_one_call_where_only_one_is_wanted():
    written = f"<tool_call>{PARIS}</tool_call><tool_call>{NOON}</tool_call>"
    assert parse(CallFormat.HERMES, [written], several=False)[1] == BOTH[:1]


@pytest.mark.parametrize(
    ("form", "written", "pattern"),
    [
        (CallFormat.HERMES, f"<tool_call>{PARIS}</tool_call>", r"call_[A-Za-z0-9]{24}"),
        (CallFormat.MISTRAL, f"[TOOL_CALLS][{PARIS}]", r"[A-Za-z0-9]{9}"),
    ],
)
def test_ids_are_such_as_the_template_takes(form, written, pattern):
    (made,) = parse(form, [written])[2]
    assert re.fullmatch(pattern, made.id)


SCHEMA = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"City": {"type": "string", "minLength": 2}},
}
TOOLS = [CallableTool(name="weather", schema=SCHEMA), CallableTool(name="time", schema=None)]
SHORT = PARIS.replace("Paris", "P")


def tokenizer(*markers, special=True):
    """A byte-level tokenizer with tokens for `markers`, and llguidance's view of it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({char: n for n, char in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    made.add_tokens([AddedToken(marker, special=special, normalized=False) for marker in markers])
    if special:
        made.add_special_tokens(list(markers))
    return made, llguidance.LLTokenizer(made.to_str(), eos_token=made.token_to_id("<end>"))


def keeps_to(source, tokenizers, text):
    made, guided = tokenizers
    matcher = llguidance.LLMatcher(guided, source, log_level=0)
    assert not matcher.get_error()
    return matcher.consume_tokens(made.encode(text).ids) and matcher.is_accepting()


def wrapped(form, *calls):
    match form:
        case CallFormat.HERMES:
            return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
        case CallFormat.LLAMA:
            return "; ".join(calls).replace("arguments", "parameters")
        case CallFormat.MISTRAL:
            return f"[TOOL_CALLS][{', '.join(calls)}]"
    told = [json.loads(call) for call in calls]
    return "".join(f"[TOOL_CALLS]{c['name']}[ARGS]{json.dumps(c['arguments'])}" for c in told)


MARKERS = {
    CallFormat.HERMES: ["<tool_call>", "</tool_call>"],
    CallFormat.LLAMA: ["<|python_tag|>"],
    CallFormat.MISTRAL: ["[TOOL_CALLS]"],
    CallFormat.MISTRAL_ARGS: ["[TOOL_CALLS]", "[ARGS]"],
}


@pytest.mark.parametrize("tokens", ["none", "added", "special"])
@pytest.mark.parametrize("form", CallFormat)
def test_grammars_of_calls(form, tokens):
    markers = [] if tokens == "none" else MARKERS[form]
    tokenizers = tokenizer(*markers, special=tokens == "special")
    ids = {marker: tokenizers[0].token_to_id(marker) for marker in markers}

    def source(choice, *, several=True, answer=None):
        required = choice == "required"
        return grammar(
            form, TOOLS, required=required, several=several, added_token=ids.get, answer=answer
        )

    one, two, wrong = wrapped(form, PARIS), wrapped(form, PARIS, NOON), wrapped(form, SHORT)
    assert keeps_to(source("required"), tokenizers, one)
    assert keeps_to(source("required"), tokenizers, two)
    assert not keeps_to(source("required"), tokenizers, "Hello")
    assert not keeps_to(source("required"), tokenizers, wrong)
    assert not keeps_to(source("required", several=False), tokenizers, two)
    if tokens == "none" and form in (CallFormat.MISTRAL, CallFormat.MISTRAL_ARGS):
        return  # their markers are tokens wherever these models are
    assert keeps_to(source("auto"), tokenizers, "Hello")
    assert keeps_to(source("auto"), tokenizers, one)
    assert not keeps_to(source("auto"), tokenizers, wrong)
    if form is not CallFormat.LLAMA:
        assert keeps_to(source("auto"), tokenizers, f"Hello {two}")
        assert not keeps_to(source("auto"), tokenizers, f"Hello {wrong}")
    either = source("auto", answer={"type": "object", "required": ["a"]})
    assert keeps_to(either, tokenizers, one)
    assert keeps_to(either, tokenizers, '{"a": 1}')
    assert not keeps_to(either, tokenizers, '{"b": 1}')
    assert not keeps_to(either, tokenizers, "Hello")
