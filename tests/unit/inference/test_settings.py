"""Settings: every value is used or refused with a sentence that names it."""

import pytest

from llm_inference.settings import SettingsError, load_settings


@pytest.fixture
def environ(monkeypatch):
    def use(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        return values

    return use


def test_defaults_need_no_environment():
    settings = load_settings({})
    assert str(settings.model_dir) == "/model"
    assert (settings.port, settings.max_concurrency, settings.max_queue) == (8080, 16, 64)
    assert settings.drain_seconds == 30


def test_values_are_read(environ):
    values = environ(LLM_PORT="9000", LLM_DTYPE="bfloat16", LLM_SERVED_NAME="small")
    settings = load_settings(values)
    assert (settings.port, settings.dtype, settings.served_name) == (9000, "bfloat16", "small")


def test_an_empty_variable_is_an_unset_one(environ):
    assert load_settings(environ(LLM_MAX_LENGTH="", LLM_THREADS="")).max_length is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LLM_PORT", "http"),
        ("LLM_PORT", "70000"),
        ("LLM_DTYPE", "int3"),
        ("LLM_TASK", "translate"),
        ("LLM_DEVICE", "tpu"),
        ("LLM_MAX_CONCURRENCY", "0"),
        ("LLM_MAX_LENGTH", "-5"),
        ("LLM_REQUEST_TIMEOUT_SECONDS", "0"),
        ("LLM_DRAIN_SECONDS", "nan"),
        ("LLM_LOG_LEVEL", "loud"),
        ("LLM_THREADS", "0"),
        ("LLM_MODEL_ID", "  "),
        ("LLM_MAX_QUEUE_TOKENS", "0"),
        ("LLM_STEP_TIMEOUT_SECONDS", "0"),
        ("LLM_MAX_BODY_BYTES", "1"),
        ("LLM_RECEIVE_TIMEOUT_SECONDS", "inf"),
        ("LLM_STREAM_COMMENT_SECONDS", "-1"),
        ("LLM_LOG_FORMAT", "xml"),
    ],
)
def test_a_bad_value_is_refused_by_name(environ, name, value):
    with pytest.raises(SettingsError, match=name) as failure:
        load_settings(environ(**{name: value}))
    assert "\n" not in str(failure.value)


def test_an_unknown_variable_is_refused():
    with pytest.raises(SettingsError, match="LLM_MAX_LENGHT is not a setting"):
        load_settings({"LLM_MAX_LENGHT": "5"})


@pytest.mark.parametrize(
    "name",
    ["LLM_SERVICE_HOST", "LLM_CHAT_SERVICE_PORT_HTTP", "LLM_CHAT_PORT_80_TCP", "LLM_CHAT_PORT"],
)
def test_what_kubernetes_injects_for_services_is_not_a_setting(name):
    load_settings({name: "tcp://10.0.0.1:80"})
