"""From the document of a run to its table, its picture and the page that quotes it."""

import json
import xml.etree.ElementTree as ET

import pytest

from bench.serving import plot, report
from bench.serving.__main__ import MARKS, PAGE, chosen_servers, parser, publish


def percentiles(value):
    return {"p50": value, "p90": value * 2, "p99": value * 3}


def load(rate, **more):
    return {
        "requests": 3,
        "failures": {},
        "prompt_tokens": 512,
        "decoding": rate,
        "ttft": percentiles(0.1),
        "itl": percentiles(0.02),
        "e2e": percentiles(1.0),
        "goodput": 0.5,
        **more,
    }


@pytest.fixture
def document():
    measured = {
        "starts": [
            {"ready": ready, "first_token": ready + 1, "phases": {"loading": ready / 2}}
            for ready in (2.0, 4.0, 3.0)
        ],
        "loads": {
            "one": [load(50.0), load(70.0), load(60.0)],
            "many": [load(300.0)],
            "prompt": [load(9.0)],
        },
        "memory": [{"total": 400e6, "anonymous": 300e6, "file": 100e6}],
        "errors": [],
        "weights": 200e6,
    }
    nothing = {"starts": [], "loads": {}, "memory": [], "errors": ["it ended"], "weights": 0}
    return {
        "taken": "2026-11-24T18:00:00+00:00",
        "commit": "abc",
        "machine": {
            "cpu": "Some Processor",
            "architecture": "x86_64",
            "cores": 2,
            "memory": 24 << 30,
            "gpu": "",
            "kernel": "6.1",
            "python": "3.13",
            "load": 0.1,
        },
        "versions": {"torch": "2"},
        "settings": {
            "model": "org/model",
            "rounds": 3,
            "starts": 3,
            "loads": {"many": {"streams": 16}},
            "objective": {"ttft": 2.0, "itl": 0.1},
        },
        "cache": 100e6,
        "import_torch": [2.0, 2.0, 2.0],
        "servers": {"ours": measured, "theirs": nothing},
    }


def cells(document, row):
    (line,) = (line for line in report.table(document).splitlines() if line.startswith(f"| {row}"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize(
    ("row", "cell"),
    [
        ("1 stream, tok/s", "60 (50 to 70)"),
        ("16 streams, tok/s", "300"),
        ("1 stream, between tokens", "20 / 40 / 60 ms"),
        ("16 streams, whole answer", "1000 / 2000 / 3000 ms"),
        ("16 streams, goodput", "50 %"),
        ("512-token prompt", "100 / 200 / 300 ms"),
        ("start to ready", "3.00 s"),
        ("start to first token", "4.00 s"),
        ("… of a bare `import torch`", "2.00 x"),
        ("memory (PSS)", "400 MB"),
        ("… allocated", "300 MB, 100 MB"),
        ("… less the cache", "1.50 x"),
        ("requests that failed", "0 of 15"),
    ],
)
def test_the_table_has_medians_and_a_mark_for_what_was_not_measured(document, row, cell):
    assert cells(document, row) == [cell, "-"]


def test_what_went_wrong_is_told(document):
    document["servers"]["ours"]["loads"]["one"][0]["failures"] = {"status 429: full": 2}
    assert cells(document, "requests that failed")[0] == "2 of 15"
    text = report.markdown(document)
    assert "- ours: status 429: full" in text
    assert "- theirs: it ended" in text


def test_the_machine_and_the_phases_are_told(document):
    text = report.markdown(document)
    assert "org/model on Some Processor (x86_64), 2 cores, 24 GiB" in text
    assert "Phases of a start of ours, from `/startupz`: loading 1.50 s." in text


def test_a_round_that_could_not_be_measured_is_left_out_of_the_median(document):
    document["servers"]["ours"]["loads"]["one"][1] = load(None, itl=percentiles(0.02))
    assert cells(document, "1 stream, tok/s")[0] == "55 (50 to 60)"


def test_the_picture_is_the_same_for_the_same_figures(document, tmp_path):
    plot.draw(document, tmp_path / "a.svg")
    plot.draw(json.loads(json.dumps(document)), tmp_path / "b.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    ET.fromstring(text)  # noqa: S314 - it was just drawn
    for shown in ("theirs", "not measured", "16 streams, tokens/s", "Some Processor"):
        assert shown in text


def test_a_run_replaces_what_the_page_quoted_and_nothing_else(document, tmp_path):
    begin, end = MARKS
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{begin}\nold\n{end}\n\nafter\n")
    publish(document, page)
    publish(document, page)
    text = page.read_text()
    assert text.startswith(f"before\n\n{begin}\n\n")
    assert text.endswith(f"\n\n{end}\n\nafter\n")
    assert "old" not in text
    assert text.count(report.table(document)) == 1


def test_the_real_page_has_a_place_for_a_run():
    text = PAGE.read_text()
    assert [text.count(mark) for mark in MARKS] == [1, 1]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--servers", "vllm"], "no server vllm"),
        (["--servers", ""], "no server is named"),
        (["--llama-python", "/bin/python"], "go together"),
        (["--llama", "--as-is"], "installs its own"),
        (["--llama", "--model", "other/model"], "installs its own"),
        (["--llama", "--llama-python", "a", "--gguf", "b"], "installs its own"),
        (["--url", "http://127.0.0.1:1"], "is meant"),
    ],
)
def test_flags_that_name_no_server_are_refused(flags, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        chosen_servers(parser().parse_args(flags), tmp_path)


def test_servers_are_named_by_flags(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    (tmp_path / "m.Q4_1.gguf").write_bytes(b"12")
    flags = ["--llama-python", "/bin/python", "--gguf", str(tmp_path / "m.Q4_1.gguf")]
    chosen = parser().parse_args([*flags, "--url", "other=http://127.0.0.1:1"])
    servers = {server.name: server for server in chosen_servers(chosen, tmp_path)}
    assert {name: server.weights for name, server in servers.items()} == {
        "llm-inference": 4,
        "transformers serve --continuous-batching": 4,
        "llama-cpp-python, Q4_1": 2,
        "other": 0,
    }
    assert servers["other"].url == "http://127.0.0.1:1"
    assert not servers["other"].command
