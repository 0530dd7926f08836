"""Chat templates render to the text that transformers renders them to."""

import json

import pytest
from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from llm_inference.engine.chat_template import ChatTemplate
from llm_inference.engine.tokenizer import read_tokenizer

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}<|eot_id|>
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}{{ "}" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" + (message.content | tojson) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set thought = message.reasoning_content %}
        {%- set thought = thought if thought is string else '' %}
        {{- '<|im_start|>assistant\\n<think>' + thought + '</think>' + (message.content or '') }}
        {%- for tool_call in message.tool_calls or [] %}
            {{- '<tool_call>' ~ (tool_call.function | tojson) ~ '</tool_call>' }}
        {%- endfor %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{{- ns.last }}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
MISTRAL = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}
{% endif %}
{% endfor %}"""
GEMMA = """{{ bos_token }}{% for message in messages %}{% set role = 'model' if
message['role'] == 'assistant' else message['role'] %}{{ '<start_of_turn>' + role + '
' }}{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}{% for item in
message['content'] %}{{ item['text'] }}{% endfor %}{% endif %}{{ '<end_of_turn>
' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model
' }}{% endif %}"""
MARKED = """{% for message in messages %}{{ message.role }}: {% generation %}
{{ message.content }}{% set seen = true %}{% endgeneration %}{{ seen is defined }}
{{ dict(a=1, **{'b': 2}) | tojson(separators=(',', ':'), sort_keys=true) }}{% endfor %}"""
TEMPLATES = {
    "llama3": LLAMA3,
    "qwen": QWEN,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "marked": MARKED,
    "two": {"default": GEMMA, "tool_use": QWEN},
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a <b>city</b> & its Umgebung: schön?",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CHATS = {
    "one": [{"role": "user", "content": "  Grüße & <tags> 'quoted' \n"}],
    "more": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello", "tool_calls": None, "reasoning": "greet"},
        {"role": "user", "content": "Bye", "name": None},
    ],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    "call": [
        {"role": "user", "content": "Weather in Bonn?"},
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Bonn"}}}],
        },
        {"role": "tool", "content": "17 °C"},
    ],
}


def transformers_render(template, messages, tools, prompt):
    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **TOKENS)
    tokenizer.chat_template = template
    return tokenizer.apply_chat_template(
        messages, tools=tools, add_generation_prompt=prompt, tokenize=False
    )


def ours_render(template, messages, tools, prompt):
    return template.render(messages, tools, add_generation_prompt=prompt)


def outcome(render, *arguments):
    try:
        return render(*arguments)
    except (TemplateError, TypeError) as error:
        return type(error)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_conversation_is_rendered_as_transformers_renders_it(template, chat):
    source, messages = TEMPLATES[template], CHATS[chat]
    ours = ChatTemplate(source, TOKENS)
    for tools in (None, TOOLS):
        for prompt in (True, False):
            expected = outcome(transformers_render, source, messages, tools, prompt)
            got = outcome(ours_render, ours, messages, tools, prompt)
            assert got == expected


def test_each_template_renders_something_and_some_refuse():
    results = {
        (template, chat): outcome(transformers_render, source, messages, TOOLS, True)
        for template, source in TEMPLATES.items()
        for chat, messages in CHATS.items()
    }
    assert all(isinstance(results[template, "one"], str) for template in TEMPLATES)
    assert results["mistral", "system"] is TemplateError


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{% set ns = namespace(_a=1) %}",
        "{{ dict.__init__.__globals__ }}",
    ],
)
def test_a_template_does_not_leave_its_sandbox(source):
    with pytest.raises(SecurityError):
        ChatTemplate(source, {}).render(CHATS["one"])


def test_a_broken_template_and_an_empty_conversation_are_refused():
    with pytest.raises(TemplateError):
        ChatTemplate("{% if %}", {}).compile()
    with pytest.raises(ValueError, match="at least one message"):
        ChatTemplate(GEMMA, TOKENS).render([])
    with pytest.raises(ValueError, match="named default"):
        ChatTemplate({"other": GEMMA}, TOKENS).render(CHATS["one"])


@pytest.mark.parametrize("layout", ["text", "list", "file", "files", "file over text"])
def test_templates_are_found_where_models_keep_them(tmp_path, layout):
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    expected = GEMMA
    if layout in ("text", "file over text"):
        config["chat_template"] = GEMMA if layout == "text" else MISTRAL
    if layout == "list":
        expected = {"default": GEMMA, "tool_use": QWEN}
        config["chat_template"] = [{"name": n, "template": t} for n, t in expected.items()]
    if layout in ("file", "files", "file over text"):
        (tmp_path / "chat_template.jinja").write_text(GEMMA)
    if layout == "files":
        expected = {"default": GEMMA, "tool_use": QWEN}
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text(QWEN)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.chat_template == expected
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path).chat_template == expected
