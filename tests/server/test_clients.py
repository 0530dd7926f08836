"""What people's programs do with the API, by the official client, against a real SmolLM2."""

import asyncio
import json
import os
import shutil

import openai
import pytest
import torch
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.server.conftest import SMOLLM2

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
# SmolLM2 knows no tools by itself; this template, made as Qwen's is, tells it of them.
TOOLS_TEMPLATE = """\
<|im_start|>system
You are a helpful assistant.{% if tools %} Call functions to answer.
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}For each call write <tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>{% endif %}<|im_end|>
{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="module")
def client(smollm2):
    with openai.OpenAI(base_url=f"{smollm2.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model(smollm2):
    return smollm2.model


class Weather(BaseModel):
    """Weather in a city."""

    city: str
    days: int


def test_a_schema_becomes_an_object(client, model):
    class Capital(BaseModel):
        country: str
        capital: str
        european: bool

    answer = client.chat.completions.parse(
        model=model, messages=QUESTION, temperature=0, max_tokens=60, response_format=Capital
    )
    assert isinstance(answer.choices[0].message.parsed, Capital)


def test_any_json_object(client, model):
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Tell me a city's name in JSON."}],
        temperature=0,
        max_tokens=100,
        response_format={"type": "json_object"},
    )
    choice = answer.choices[0]
    assert choice.message.content.startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


def test_guided_texts(client, model):
    def ask(**more):
        answer = client.chat.completions.create(
            model=model, messages=QUESTION, temperature=0, max_tokens=20, extra_body=more
        )
        return answer.choices[0].message.content

    assert ask(guided_choice=["Madrid", "Rome"]) in ("Madrid", "Rome")
    assert ask(guided_regex="[A-Z]{3}").isupper()
    assert ask(guided_grammar='start: "cit" /[y]{2}/') == "cityy"
    assert isinstance(json.loads(ask(guided_json={"type": "integer"})), int)
    with pytest.raises(openai.BadRequestError, match="guided_regex") as caught:
        ask(guided_regex="(")
    assert caught.value.param == "guided_regex"


def test_log_probabilities_are_the_models(client, model, smollm2_dir):
    answer = client.chat.completions.create(
        model=model,
        messages=QUESTION,
        temperature=0,
        max_tokens=3,
        logprobs=True,
        top_logprobs=5,
    )
    told = answer.choices[0].logprobs.content
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    reference = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32).eval()
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    for entry in told:
        with torch.no_grad():
            likely = reference(ids).logits[0, -1].log_softmax(-1).topk(5)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(
            likely.values.tolist(), abs=1e-3
        )
        assert entry.token == tokenizer.decode(likely.indices[0])
        assert entry.logprob == entry.top_logprobs[0].logprob
        ids = torch.cat([ids, likely.indices[:1].unsqueeze(0)], dim=1)
    text = b"".join(bytes(entry.bytes) for entry in told).decode()
    assert text == answer.choices[0].message.content


def test_biases_and_penalties_change_the_text(client, model):
    ask = {"model": model, "prompt": "1 1 1 1 1 1 1 1", "temperature": 0, "max_tokens": 8}
    plain = client.completions.create(**ask, logprobs=0).choices[0]
    assert len(plain.logprobs.tokens) == 8
    for more in (
        {"presence_penalty": 2.0, "frequency_penalty": 2.0},
        {"extra_body": {"repetition_penalty": 5.0}},
    ):
        assert client.completions.create(**ask, **more).choices[0].text != plain.text
    forced = client.completions.create(**ask, logit_bias={"520": 100}, logprobs=0).choices[0]
    assert len(set(forced.logprobs.tokens)) == 1


def test_ignored_ends(client, model):
    ask = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 40}
    assert client.chat.completions.create(**ask).usage.completion_tokens < 40
    on = client.chat.completions.create(**ask, extra_body={"ignore_eos": True})
    assert (on.usage.completion_tokens, on.choices[0].finish_reason) == (40, "length")


def test_many_prompts_at_once_are_each_alone(client, model):
    prompts = ["The capital of France is", "Water boils at", "1, 2, 3, 4,"]
    ask = {"model": model, "temperature": 0, "max_tokens": 6}
    together = client.completions.create(**ask, prompt=prompts, echo=True)
    alone = [client.completions.create(**ask, prompt=prompt).choices[0].text for prompt in prompts]
    assert [choice.text for choice in together.choices] == [
        prompt + text for prompt, text in zip(prompts, alone, strict=True)
    ]
    assert [choice.index for choice in together.choices] == [0, 1, 2]


def test_tokens_are_the_tokenizers(smollm2, smollm2_dir):
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    text = "Hello wörld 😀"
    answer = smollm2.client.post("/tokenize", json={"prompt": text}).json()
    assert answer["tokens"] == tokenizer(text).input_ids
    assert (answer["count"], answer["max_model_len"]) == (len(answer["tokens"]), 1024)
    back = smollm2.client.post("/detokenize", json={"tokens": answer["tokens"]})
    assert back.json() == {"prompt": text}
    chat = smollm2.client.post("/tokenize", json={"messages": QUESTION}).json()
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    assert chat["tokens"] == tokenizer(prompt, add_special_tokens=False).input_ids


def test_info_of_a_generating_model(smollm2):
    info = smollm2.client.get("/info").json()
    assert (info["root"], info["task"], info["max_length"]) == (SMOLLM2, "generate", 1024)
    assert info["device"]["dtype"] == "float32"
    assert info["features"]["chat"]
    assert not info["features"]["tools"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "M", "prompt": "\xff\xfe"}',
        b'{"model": "M", "prompt": "a", "temperature": NaN}',
        b'{"model": "M", "prompt": "a", "temperature": 1e999}',
        b'{"model": "M", "prompt": "a", "seed": 1' + b"0" * 5000 + b"}",
        b'{"model": "M", "prompt": "a", "guided_json": ' + b'{"a":' * 500 + b"1" + b"}" * 501,
        b'{"model": "M", "prompt": "' + b"word " * 200_000 + b'"}',
        b'{"model": "M", "prompt": "\\ud800"}',
        b'{"model": "M", "prompt": {"a": 1}}',
    ],
    ids=["utf-8", "nan", "infinity", "integer", "deep", "huge", "surrogate", "type"],
)
def test_strange_bodies_get_4xx_and_the_next_request_works(smollm2, body):
    body = body.replace(b'"M"', json.dumps(smollm2.model).encode())
    headers = {"content-type": "application/json"}
    answer = smollm2.client.post("/v1/completions", content=body, headers=headers)
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["message"]
    assert smollm2.complete("A", max_tokens=1).status_code == 200


async def test_the_async_client_streams_completions(smollm2):
    url = f"{smollm2.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def ask(prompt):
            pieces = await client.completions.create(
                model=smollm2.model, prompt=prompt, max_tokens=5, temperature=0, stream=True
            )
            return "".join([piece.choices[0].text async for piece in pieces])

        texts = await asyncio.gather(ask("The capital of France is"), ask("Water boils at"))
        with pytest.raises(openai.BadRequestError):
            await client.completions.create(model=smollm2.model, prompt="")
    assert "Paris" in texts[0]


async def test_a_full_server_is_a_rate_limit_to_the_client(smollm2):
    url = f"{smollm2.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        ask = {"model": smollm2.model, "prompt": "Once", "max_tokens": 40, "n": 6}
        answers = await asyncio.gather(
            *(client.completions.create(**ask) for _ in range(3)), return_exceptions=True
        )
    assert any(isinstance(answer, openai.RateLimitError) for answer in answers)
    assert not all(isinstance(answer, Exception) for answer in answers)


@pytest.fixture(scope="module")
def tools_server(begin_server, tmp_path_factory, smollm2_dir):
    directory = tmp_path_factory.mktemp("tools") / "model"
    shutil.copytree(smollm2_dir, directory, copy_function=os.symlink)
    (directory / "chat_template.jinja").unlink()
    (directory / "chat_template.jinja").write_text(TOOLS_TEMPLATE)
    return begin_server(
        tmp_path_factory.mktemp("tools-log") / "stderr",
        LLM_SERVED_NAME="tools",
        LLM_MODEL_DIR=str(directory),
        LLM_DTYPE="float32",
        LLM_MAX_LENGTH="1024",
        LLM_MAX_CONCURRENCY="4",
    )


@pytest.fixture(scope="module")
def tools_client(tools_server):
    with openai.OpenAI(base_url=f"{tools_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


ASK_TOOLS = {
    "model": "tools",
    "messages": [{"role": "user", "content": "How is the weather in Paris for 3 days?"}],
    "tools": [openai.pydantic_function_tool(Weather, name="weather")],
    "temperature": 0,
    "max_tokens": 80,
}


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_required_call_keeps_to_its_schema(tools_client, choice):
    answer = tools_client.chat.completions.parse(**ASK_TOOLS, tool_choice=choice)
    (call,) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "weather"
    assert isinstance(call.function.parsed_arguments, Weather)
    assert answer.choices[0].message.content is None


def test_a_stream_of_a_call_and_what_its_result_leads_to(tools_client):
    with tools_client.chat.completions.stream(
        **ASK_TOOLS, tool_choice="required", parallel_tool_calls=False
    ) as stream:
        final = stream.get_final_completion()
    message = final.choices[0].message
    (call,) = message.tool_calls
    assert call.function.parsed_arguments == Weather.model_validate_json(call.function.arguments)
    told = [
        *ASK_TOOLS["messages"],
        message.to_dict(exclude_unset=True),
        {"role": "tool", "tool_call_id": call.id, "content": "12 degrees"},
    ]
    for item in told[1].get("tool_calls"):
        item["function"].pop("parsed_arguments", None)
        item.pop("index", None)
    told[1].pop("parsed", None)
    answer = tools_client.chat.completions.create(
        **{**ASK_TOOLS, "messages": told}, tool_choice="none"
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].message.tool_calls is None


def test_auto_answers_with_text_or_with_calls(tools_client):
    answer = tools_client.chat.completions.create(**ASK_TOOLS)
    message = answer.choices[0].message
    assert message.content or message.tool_calls
    for call in message.tool_calls or []:
        Weather.model_validate_json(call.function.arguments)


def test_an_answer_is_a_call_or_keeps_to_the_schema(tools_client):
    answer = tools_client.chat.completions.parse(**ASK_TOOLS, response_format=Weather)
    message = answer.choices[0].message
    if message.tool_calls:
        assert isinstance(message.tool_calls[0].function.parsed_arguments, Weather)
    else:
        assert isinstance(message.parsed, Weather)


def test_a_prompt_that_was_read_before_is_told_of(client, model):
    ask = {"model": model, "prompt": "Of all the words that cats know, " * 8, "max_tokens": 2}
    first, second = (client.completions.create(**ask).usage for _ in range(2))
    assert first.prompt_tokens_details.cached_tokens < first.prompt_tokens / 2
    assert second.prompt_tokens_details.cached_tokens > second.prompt_tokens / 2
