"""What requests become for the engine and what its events become, over an engine that is told."""

import asyncio
import json
import math
from contextlib import asynccontextmanager

import httpx
import pytest

from llm_inference.app import create_app
from llm_inference.engine.interface import (
    EngineFullError,
    FinishReason,
    GrammarError,
    TokenEvent,
    TokenLogprob,
)
from llm_inference.health import Health, Phase
from llm_inference.serving import Serving
from llm_inference.settings import Settings
from tests.unit.inference.told_engine import CHATS, Engine, Stream

TOOLS_TEMPLATE = CHATS + "{% if tools %}<tool_call></tool_call>{% endif %}"
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
CHAT = {"model": "m", "messages": [{"role": "user", "content": "two words"}]}
TEXT = {"model": "m", "prompt": "two words"}


def said(*pieces, index=0, reason=FinishReason.STOP, **more):
    """Events that say `pieces`, and then end."""
    events = [
        TokenEvent(index=index, text=piece, tokens=place + 1, **more)
        for place, piece in enumerate(pieces)
    ]
    last = TokenEvent(
        index=index,
        text="",
        tokens=len(pieces),
        finish_reason=reason,
        reused=more.get("reused", 0),
    )
    return [*events, last]


@asynccontextmanager
async def client_for(engine, **settings):
    serving = Serving(Settings(served_name="m", **settings), Health(), load=lambda _: engine)
    for phase in (Phase.LOADING, Phase.WARMING):
        serving.health.enter(phase)
    serving._serve(engine)
    transport = httpx.ASGITransport(create_app(serving), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


async def post(engine, path, body, **settings):
    async with client_for(engine, **settings) as client:
        return await client.post(path, json=body)


async def chat(engine, **more):
    return await post(engine, "/v1/chat/completions", {**CHAT, **more})


async def complete(engine, **more):
    return await post(engine, "/v1/completions", {**TEXT, **more})


def chunks(answer):
    """The chunks of a stream that is done."""
    assert answer.status_code == 200
    *events, done, end = answer.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def assert_refused(answer, param, word=""):
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert word in answer.json()["error"]["message"]


async def test_every_parameter_of_sampling_reaches_the_engine():
    engine = Engine(said("a"))
    await complete(
        engine,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        seed=3,
        presence_penalty=1,
        frequency_penalty=-1.5,
        repetition_penalty=1.2,
        logit_bias={"5": -100, "49": 2.5},
        ignore_eos=True,
        logprobs=2,
        stop=["x"],
        n=2,
        user="someone",
    )
    (asked,) = engine.requests
    sampling = asked.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (
        0.5,
        0.9,
        7,
        0.1,
    )
    assert (sampling.seed, sampling.presence_penalty, sampling.frequency_penalty) == (3, 1, -1.5)
    assert (sampling.repetition_penalty, sampling.logit_bias) == (1.2, {5: -100, 49: 2.5})
    assert (asked.ignore_eos, asked.logprobs, asked.stop, asked.n) == (True, 2, ("x",), 2)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"logit_bias": {"50": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": 1, "echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": [50]}, "prompt"),
        ({"prompt": [[1], [50]]}, "prompt"),
        ({"prompt": ["a"] * 9}, "prompt"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
    ],
)
async def test_what_completions_do_not_take(change, param):
    assert_refused(await complete(Engine(said("a")), **change), param)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "response_format.json_schema.name",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        (
            {
                "tools": [WEATHER],
                "tool_choice": {"type": "function", "function": {"name": "other"}},
            },
            "tool_choice",
        ),
        ({"messages": [{"role": "tool", "content": "5"}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages"),
    ],
)
async def test_what_chat_does_not_take(change, param):
    assert_refused(await chat(Engine(said("a"), chat_template=TOOLS_TEMPLATE), **change), param)


async def test_a_template_without_tools_refuses_tools_by_name():
    answer = await chat(Engine(said("a"), chat_template=CHATS), tools=[WEATHER])
    assert_refused(answer, "tools", "knows no tools")
    told = [
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ],
        }
    ]
    answer = await chat(Engine(said("a"), chat_template=CHATS), messages=told)
    assert_refused(answer, "messages", "knows no tools")


async def test_a_conversation_with_tools_comes_to_the_template_as_it_expects_it():
    engine = Engine(said("a"), chat_template=TOOLS_TEMPLATE)
    function = {"name": "weather", "arguments": '{"city": "Paris"}'}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {
            "role": "assistant",
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "12 °C"},
    ]
    answer = await chat(engine, messages=messages, tools=[WEATHER])
    assert answer.status_code == 200
    ((told, tools, prompted),) = engine.codec.chats
    assert prompted
    assert [message["role"] for message in told] == ["system", "user", "assistant", "tool"]
    assert told[2]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    assert told[3]["tool_call_id"] == "c1"
    assert tools[0]["function"]["name"] == "weather"


async def test_arguments_that_are_no_object_are_refused():
    function = {"name": "weather", "arguments": "[1]"}
    call = {"id": "c", "type": "function", "function": function}
    messages = [{"role": "assistant", "tool_calls": [call]}]
    engine = Engine(said("a"), chat_template=TOOLS_TEMPLATE)
    assert_refused(await chat(engine, messages=messages), "messages", "not a JSON object")


async def test_a_call_in_an_answer():
    engine = Engine(said(CALL[:9], CALL[9:]), chat_template=TOOLS_TEMPLATE)
    (choice,) = (await chat(engine, tools=[WEATHER])).json()["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}
    assert engine.requests[0].constraint is None


async def test_a_call_in_a_stream_has_its_name_first():
    engine = Engine(said("Well. ", CALL[:9], CALL[9:]), chat_template=TOOLS_TEMPLATE)
    told = chunks(await chat(engine, tools=[WEATHER], stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in told]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[1] == {"content": "Well."}
    (opening,), (arguments,) = deltas[2]["tool_calls"], deltas[3]["tool_calls"]
    assert (opening["index"], opening["type"]) == (0, "function")
    assert opening["function"] == {"name": "weather", "arguments": ""}
    assert json.loads(arguments["function"]["arguments"]) == {"city": "Paris"}
    assert [c["choices"][0]["finish_reason"] for c in told][-1] == "tool_calls"


async def test_without_tools_what_looks_like_a_call_is_text():
    for more in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        engine = Engine(said(CALL), chat_template=TOOLS_TEMPLATE)
        (choice,) = (await chat(engine, **more)).json()["choices"]
        assert choice["message"]["content"] == CALL
        assert choice["finish_reason"] == "stop"
        assert engine.codec.chats[0][1] == []


@pytest.mark.parametrize(
    ("choice", "strict", "bound"),
    [
        ("auto", False, False),
        ("auto", True, True),
        ("required", False, True),
        ({"type": "function", "function": {"name": "weather"}}, False, True),
    ],
)
async def test_a_grammar_makes_calls_that_must_be_made(choice, strict, bound):
    engine = Engine(said(CALL), chat_template=TOOLS_TEMPLATE)
    tool = {"type": "function", "function": {**WEATHER["function"], "strict": strict}}
    await chat(engine, tools=[tool], tool_choice=choice)
    assert [grammar.kind for grammar in engine.grammars] == (["lark"] if bound else [])
    assert (engine.requests[0].constraint is not None) is bound


async def test_an_answer_may_be_a_call_or_keep_to_a_format():
    engine = Engine(said('{"a": 1}'), chat_template=TOOLS_TEMPLATE)
    answer = await chat(engine, tools=[WEATHER], response_format={"type": "json_object"})
    assert answer.json()["choices"][0]["message"]["content"] == '{"a": 1}'
    (grammar,) = engine.grammars
    assert (grammar.kind, " | answer" in grammar.source) == ("lark", True)
    refused = await chat(engine, tools=[WEATHER], guided_regex="a")
    assert_refused(refused, "tools", "guided_regex")


@pytest.mark.parametrize(
    ("change", "kind", "source"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", ""),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "array"}, "strict": True},
                }
            },
            "json_schema",
            '{"type": "array"}',
        ),
        ({"guided_json": {"type": "array"}}, "json_schema", '{"type": "array"}'),
        ({"guided_json": '{"type":"array"}'}, "json_schema", '{"type":"array"}'),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["a", "b"]}, "choice", '["a", "b"]'),
        ({"guided_grammar": "start: /a/"}, "lark", "start: /a/"),
        ({"response_format": {"type": "text"}}, None, None),
    ],
)
async def test_what_an_answer_must_look_like_is_compiled(change, kind, source):
    engine = Engine(said("a"))
    assert (await complete(engine, **change)).status_code == 200
    assert [(g.kind, g.source) for g in engine.grammars] == ([(kind, source)] if kind else [])
    assert engine.requests[0].constraint is (engine.grammars[0] if kind else None)


async def test_a_grammar_that_cannot_be_kept_to_is_refused_by_name():
    class Choosy(Engine):
        def compile(self, grammar):
            raise GrammarError("it is malformed")

    assert_refused(await complete(Choosy(), guided_regex="("), "guided_regex", "it is malformed")


async def test_choices_of_many_prompts_are_numbered_on():
    class TwoEach(Engine):
        def submit(self, request):
            stream = super().submit(request)
            words = str(request.prompt[0])
            cached = len(request.prompt)
            stream.events = [
                *said(words + "a", reused=cached),
                *said(words + "b", index=1, reused=9),
            ]
            return stream

    for more in ({}, {"stream": True, "stream_options": {"include_usage": True}}):
        engine = TwoEach()
        answer = await complete(engine, prompt=["one", "three five"], n=2, **more)
        if more:
            *told, last = chunks(answer)
            texts = [""] * 4
            for chunk in told:
                texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
            usage = last["usage"]
        else:
            texts = [choice["text"] for choice in answer.json()["choices"]]
            usage = answer.json()["usage"]
        assert texts == ["3a", "3b", "5a", "5b"]
        assert usage == {
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 1 + 2},
        }
        assert [request.prompt for request in engine.requests] == [[3], [5, 4]]


async def test_a_prompt_that_finds_no_room_takes_the_others_back():
    class Small(Engine):
        def submit(self, request):
            if self.requests:
                raise EngineFullError(3)
            return super().submit(request)

    engine = Small(said("a"))
    answer = await complete(engine, prompt=["a", "b"])
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert engine.streams[0].cancelled


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("prompt", "told"), [("two words", "two words"), ([3, 5], "xxx xxxxx")])
async def test_echo_begins_with_the_prompt(prompt, told, streamed):
    answer = await complete(Engine(said("!")), prompt=prompt, echo=True, stream=streamed)
    if streamed:
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks(answer))
    else:
        text = answer.json()["choices"][0]["text"]
    assert text == f"{told}!"


LIKELY = (
    TokenLogprob(token=2, logprob=-0.5, top=((2, -0.5), (3, -math.inf))),
    TokenLogprob(token=3, logprob=-1.0, top=((2, -0.25), (1, -2.0))),
)


@pytest.mark.parametrize("streamed", [False, True])
async def test_log_probabilities_of_chat(streamed):
    engine = Engine(said("xxxxx", logprobs=LIKELY), chat_template=CHATS)
    answer = await chat(engine, logprobs=True, top_logprobs=2, stream=streamed)
    assert engine.requests[0].logprobs == 2
    choices = (
        [chunk["choices"][0] for chunk in chunks(answer)] if streamed else answer.json()["choices"]
    )
    (told,) = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    first, second = told["content"]
    assert (first["token"], first["logprob"], first["bytes"]) == ("xx", -0.5, [120, 120])
    assert [top["logprob"] for top in first["top_logprobs"]] == [-0.5, -9999.0]
    assert [top["token"] for top in second["top_logprobs"]] == ["xx", "x"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_log_probabilities_of_completions(streamed):
    answer = await complete(Engine(said("xxxxx", logprobs=LIKELY)), logprobs=2, stream=streamed)
    choices = (
        [chunk["choices"][0] for chunk in chunks(answer)] if streamed else answer.json()["choices"]
    )
    (told,) = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    assert told == {
        "tokens": ["xx", "xxx"],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [
            {"xx": -0.5, "xxx": -9999.0},
            {"xx": -0.25, "x": -2.0, "xxx": -1.0},
        ],
        "text_offset": [0, 2],
    }


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("path", ["chat", "text"])
async def test_a_stream_says_what_the_whole_answer_says(path, at_once):
    pieces = ("Hel", 'lo "you"', "\n\tand\u2028\x00é😀", "")
    whole, parts = (
        Engine(said(*pieces, reason=FinishReason.LENGTH), chat_template=CHATS, at_once=at_once)
        for _ in range(2)
    )
    ask = chat if path == "chat" else complete
    answer = (await ask(whole)).json()
    *told, last = chunks(await ask(parts, stream=True, stream_options={"include_usage": True}))
    choices = [chunk["choices"][0] for chunk in told]
    if path == "chat":
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        assert text == answer["choices"][0]["message"]["content"]
    else:
        assert "".join(choice["text"] for choice in choices) == answer["choices"][0]["text"]
    assert [choice["finish_reason"] for choice in choices][-2:] == [None, "length"]
    assert all(chunk["usage"] is None for chunk in told)
    assert (last["choices"], last["usage"]) == ([], answer["usage"])


class Silent(Stream):
    """A stream that says nothing for a while, or for ever."""

    def __init__(self, events, seconds):
        super().__init__(events)
        self.seconds = seconds

    async def next_events(self):
        await asyncio.sleep(self.seconds)
        return await super().next_events()


class Slow(Engine):
    def __init__(self, events, seconds):
        super().__init__(events)
        self.seconds = seconds

    def submit(self, request):
        self.streams.append(Silent(self.events, self.seconds))
        return self.streams[-1]


async def test_comments_fill_silence():
    engine = Slow(said("a"), 0.25)
    answer = await post(
        engine, "/v1/completions", {**TEXT, "stream": True}, stream_comment_seconds=0.05
    )
    assert answer.text.startswith(": keep-alive\n\n: keep-alive\n\n")
    told = [line for line in answer.text.split("\n\n") if line.startswith("data: ")]
    assert json.loads(told[0].removeprefix("data: "))["choices"][0]["text"] == "a"
    assert told[-1] == "data: [DONE]"


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_request_that_takes_too_long_is_ended(streamed):
    engine = Slow(said("a"), 60)
    answer = await post(
        engine, "/v1/completions", {**TEXT, "stream": streamed}, request_timeout_seconds=0.1
    )
    assert answer.status_code == (200 if streamed else 504)
    error = json.loads(answer.text.removeprefix("data: "))["error"]
    assert (error["type"], "0.1 s" in error["message"]) == ("timeout", True)
    assert engine.streams[0].cancelled


async def test_tokens_of_texts_and_conversations():
    engine = Engine(chat_template=CHATS)
    async with client_for(engine) as client:
        text = await client.post(
            "/tokenize", json={"prompt": "two words", "return_token_strs": True}
        )
        chat = await client.post("/tokenize", json={"messages": CHAT["messages"], "model": "m"})
        back = await client.post("/detokenize", json={"tokens": [3, 5]})
        neither = await client.post("/tokenize", json={})
        beyond = await client.post("/detokenize", json={"tokens": [50]})
    assert text.json() == {
        "count": 2,
        "max_model_len": 32,
        "tokens": [3, 5],
        "token_strs": ["xxx", "xxxxx"],
    }
    assert chat.json()["tokens"] == [3, 5]
    assert back.json() == {"prompt": "xxx xxxxx"}
    assert_refused(neither, "prompt")
    assert_refused(beyond, "tokens")


async def test_info():
    async with client_for(Engine(chat_template=TOOLS_TEMPLATE)) as client:
        info = (await client.get("/info")).json()
    assert (info["model"], info["task"], info["max_length"]) == ("m", "generate", 32)
    assert info["features"]["tools"]
    assert {"torch", "transformers", "llm-inference", "python"} <= info["versions"].keys()


@pytest.mark.parametrize(
    "body",
    [
        {"model": "\ud800", "prompt": "a"},
        {"model": "m", "prompt": "a", "\ud800": 1},
        {"model": "m", "prompt": "a", "x" * 100_000: 1},
        {"model": "m", "prompt": "a", "user": "\udfff"},
        {"model": "m", "prompt": "a", "guided_json": {"a": "\ud800"}},
        {"model": "m", "prompt": "a", "guided_json": {"a": math.nan}},
        {"model": "m", "prompt": "a", "temperature": math.nan},
        {"model": "m", "prompt": "a", "temperature": 10**400},
        {"model": "m", "prompt": "a", "seed": 10**4000},
        {"model": "m", "prompt": [10**400]},
        {"model": "m", "prompt": [True]},
    ],
)
async def test_strange_values_are_refused(body):
    content = json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    async with client_for(Engine(said("a"))) as client:
        answer = await client.post("/v1/completions", content=content, headers=headers)
        assert answer.status_code in (400, 404)
        assert len(answer.json()["error"]["message"]) < 2000
        assert (await client.post("/v1/completions", json=TEXT)).status_code == 200


async def test_the_description_names_every_error():
    async with client_for(Engine()) as client:
        described = (await client.get("/openapi.json")).json()
        assert (await client.get("/docs")).status_code == 200
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize"):
        responses = described["paths"][path]["post"]["responses"]
        assert {"200", "400", "401", "404", "429", "4XX", "5XX"} <= responses.keys()
        assert "422" not in responses
        shape = responses["400"]["content"]["application/json"]["schema"]["$ref"]
        assert shape.endswith("/ErrorBody")
    assert (
        "text/event-stream"
        in (described["paths"]["/v1/completions"]["post"]["responses"]["200"]["content"])
    )
