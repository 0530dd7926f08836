"""API keys on a real server: who is let in, and that a renewed Secret needs no restart."""

import time

import openai
import pytest

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
ASK = {"model": MINILM, "input": "a"}
OPEN = {"/livez", "/readyz", "/health", "/startupz", "/metrics"}


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    """A folder like that of a mounted Secret; returns what renews it."""
    mount = tmp_path_factory.mktemp("secret")
    versions = iter(range(100))

    def renew(content):
        folder = mount / f"..{next(versions)}"
        folder.mkdir()
        (folder / "keys").write_text(content)
        (mount / "..tmp").symlink_to(folder.name)
        (mount / "..tmp").rename(mount / "..data")
        if not (mount / "keys").is_symlink():
            (mount / "keys").symlink_to("..data/keys")

    renew("# the first\nsk-first\nsk-second\n")
    renew.path = mount / "keys"
    return renew


@pytest.fixture(scope="module")
def server(tmp_path_factory, minilm_dir, secret, begin_server):
    return begin_server(
        tmp_path_factory.mktemp("keys") / "stderr",
        LLM_MODEL_ID=MINILM,
        LLM_MODEL_DIR=str(minilm_dir),
        LLM_API_KEYS_FILE=str(secret.path),
        LLM_LOG_LEVEL="debug",
    )


def embed(server, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    return server.client.post("/v1/embeddings", json=ASK, headers=headers)


@pytest.mark.parametrize("key", ["Bearer sk-first", "Bearer sk-second", "bearer  sk-first"])
def test_a_key_of_the_file_is_let_in(server, key):
    assert embed(server, key).status_code == 200


@pytest.mark.parametrize(
    "key", [None, "", "Bearer", "Bearer sk-firs", "Basic sk-first", "sk-first"]
)
def test_without_one_it_is_401_as_openai_says_it(server, key):
    answer = embed(server, key)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "invalid_api_key"
    assert "sk-" not in error["message"]


def test_every_route_of_the_api_asks_for_a_key(server):
    routes = server.client.get("/openapi.json").json()["paths"]
    api = [path for path in routes if path not in OPEN]
    assert {"/tokenize", "/detokenize", "/info", "/v1/chat/completions"} <= set(api)
    for path in [*api, "/v1/none"]:
        for method in ("GET", "POST", "OPTIONS"):
            assert server.client.request(method, path).status_code == 401


def test_probes_and_metrics_stay_open(server):
    for path in OPEN:
        assert server.client.get(path).status_code == 200


def test_openais_client_takes_both_answers(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-first") as client:
        assert client.embeddings.create(model=MINILM, input="a").data
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-none") as client,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        client.models.list()
    assert refused.value.code == "invalid_api_key"


def test_a_renewed_secret_needs_no_restart_and_a_lost_one_locks_nobody_out(server, secret):
    secret("sk-third\n")
    deadline = time.monotonic() + 10
    while embed(server, "Bearer sk-third").status_code != 200:
        assert time.monotonic() < deadline
    assert embed(server, "Bearer sk-first").status_code == 401

    secret("")
    deadline = time.monotonic() + 10
    while "holds no API key" not in server.stderr():
        assert embed(server, "Bearer sk-third").status_code == 200
        assert time.monotonic() < deadline
    assert embed(server, "Bearer sk-third").status_code == 200
    assert "sk-" not in server.stderr()


@pytest.mark.parametrize("content", [None, "", "# none yet\n"])
def test_a_file_without_keys_at_start_is_exit_2(start, minilm_dir, tmp_path, content):
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    server = start(LLM_MODEL_DIR=str(minilm_dir), LLM_API_KEYS_FILE=str(path))
    assert server.exit_code(30) == 2
    (line,) = server.stderr().splitlines()
    assert line.startswith("LLM_API_KEYS_FILE: ")
    assert str(path) in line
