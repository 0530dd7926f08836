"""From the document of a run to its table, its picture and the page that quotes it."""

import copy
import json
import xml.etree.ElementTree as ET

import pytest

from bench.image import plot, report
from bench.image.__main__ import MARKS, PAGE, chosen_hardware, parser, publish

GIGA = 1_000_000_000


def figures(factor, **more):
    return {
        "preloaded": False,
        "user": "root",
        "layers": [
            {"digest": "a", "size": 3_000_000 * factor, "step": "RUN pip"},
            {"digest": "b", "size": 900, "step": "COPY . ."},
        ],
        "census": {
            "bytes": GIGA * factor,
            "files": 1500 * factor,
            "model_bytes": 0,
            "os_packages": 100 * factor,
            "python_packages": 60,
            "libraries": 40 * factor,
            "programs": 500 * factor,
            "compilers": ["gcc", "ld"],
            "setuid": ["/usr/bin/su"],
        },
        "first_build": None,
        "rebuilds": [
            {
                "wall": wall * factor,
                "work": 2.0 * factor,
                "new_bytes": 50_000 * factor,
                "repeated": [
                    "[server 3/6] COPY . .",
                    "[server 4/6] RUN --mount=type=x pip install -r a",
                ],
            }
            for wall in (3.0, 9.0, 4.0)
        ],
        "starts": [],
        "pods": [],
        **more,
    }


@pytest.fixture
def document():
    ours = figures(1, preloaded=True, user="65532:0")
    ours["census"] |= {"model_bytes": 250_000_000, "compilers": [], "setuid": []}
    ours["starts"] = [
        {"ready": ready, "first_token": ready + 1, "phases": {"loading": ready / 2}}
        for ready in (2.0, 4.0, 3.0)
    ]
    ours["layers"][0] |= {"size": 2_000_000}
    model = {"digest": "m", "size": 1_000_000, "step": "COPY /model /model # buildkit"}
    ours["layers"].append(model)
    theirs = figures(3)
    theirs["starts"] = [{"ready": 6.0, "first_token": 8.0, "phases": {"downloading": 2.5}}]
    return {
        "taken": "2026-11-28T13:00:00+00:00",
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
        "stand_ins": ["the model hub"],
        "settings": {
            "model": "org/model",
            "compression": "zstd",
            "rebuilds": 3,
            "starts": 3,
            "pods": 0,
            "first_build": False,
        },
        "model_bytes": 269_000_000,
        "hardware": {
            "cpu": {"multi-stage": ours, "single-stage": theirs},
            "gpu": {"multi-stage": figures(2, preloaded=True), "single-stage": figures(5)},
        },
    }


def cells(document, row):
    lines = report.table(document).splitlines()
    (line,) = (line for line in lines if line.startswith(f"| {row} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ("files, unpacked", ["1.00 GB", "3.00 GB (3.0 x)", "2.00 GB", "5.00 GB (2.5 x)"]),
        ("… without the model", ["750 MB", "3.00 GB (4.0 x)", "2.00 GB", "5.00 GB (2.5 x)"]),
        ("layers, zstd", ["3.0 MB", "9.0 MB (3.0 x)", "6.0 MB", "15 MB (2.5 x)"]),
        # Of the gpu's preloaded one it is not known which layer the model is.
        ("… without the model's", ["2.0 MB", "9.0 MB (4.5 x)", "-", "15 MB"]),
        ("layers", ["3", "2", "2", "2"]),
        ("build after a code change", ["4.00 s", "12.0 s (3.0 x)", "8.00 s", "20.0 s (2.5 x)"]),
        ("… work of its steps", ["2.00 s", "6.00 s (3.0 x)", "4.00 s", "10.0 s (2.5 x)"]),
        (
            "new bytes to push and pull after a code change",
            ["50 kB", "150 kB (3.0 x)", "100 kB", "250 kB (2.5 x)"],
        ),
        ("files", ["1,500", "4,500 (3.0 x)", "3,000", "7,500 (2.5 x)"]),
        ("packages of the system", ["100", "300 (3.0 x)", "200", "500 (2.5 x)"]),
        ("… that compile or link", ["0", "2", "2", "2 (1.0 x)"]),
        ("setuid and setgid files", ["0", "1", "1", "1 (1.0 x)"]),
        ("fetched at each start", ["0", "269 MB", "0", "269 MB"]),
        ("container to ready", ["3.00 s", "6.00 s (2.0 x)", "-", "-"]),
        ("container to first token", ["4.00 s", "8.00 s (2.0 x)", "-", "-"]),
        ("runs as", ["`65532:0`", "`root`", "`root`", "`root`"]),
    ],
)
def test_each_image_is_compared_with_the_first_of_its_hardware(document, row, shown):
    assert cells(document, row) == shown


def test_what_was_not_measured_at_all_has_no_row(document):
    text = report.table(document)
    assert "pod created" not in text
    assert "first build" not in text
    document["hardware"]["cpu"]["single-stage"]["pods"] = [9.0]
    document["hardware"]["cpu"]["multi-stage"]["first_build"] = {"wall": 61.0}
    assert cells(document, "pod created to Ready") == ["-", "9.00 s", "-", "-"]
    assert cells(document, "first build, package caches warm") == ["61.0 s", "-", "-", "-"]


def test_layers_steps_phases_and_stand_ins_are_told(document):
    text = report.markdown(document)
    assert "- cpu, single-stage: 9.0 MB, 900 B" in text
    assert "- cpu, multi-stage: `COPY . .`, `RUN pip install -r …`" in text
    assert "- cpu, multi-stage: loading 1.50 s" in text
    assert "- cpu, single-stage: downloading 2.50 s" in text
    assert "Stood in for: the model hub." in text
    assert "org/model on Some Processor (x86_64), 2 cores, 24 GiB" in text


def test_where_nothing_stood_in_nothing_is_said(document):
    document["stand_ins"] = []
    assert "Stood in" not in report.markdown(document)


def test_the_picture_is_the_same_for_the_same_figures(document, tmp_path):
    plot.draw(document, tmp_path / "a.svg")
    plot.draw(json.loads(json.dumps(document)), tmp_path / "b.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    ET.fromstring(text)  # noqa: S314 - it was just drawn
    for shown in ("gpu, single-stage", "not measured", "layers, zstd", "3.00 GB (3.0 x)"):
        assert shown in text


@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
def test_one_hardware_alone_can_be_shown(document, hardware, tmp_path):
    only = copy.deepcopy(document)
    only["hardware"] = {hardware: document["hardware"][hardware]}
    assert hardware in report.markdown(only)
    plot.draw(only, tmp_path / "a.svg")


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


@pytest.mark.parametrize("text", ["tpu", "cpu,tpu", ""])
def test_hardware_that_is_not_known_is_refused(text):
    with pytest.raises(ValueError, match="cpu and gpu are known"):
        chosen_hardware(text)


def test_both_are_measured_if_nothing_is_said():
    assert chosen_hardware(parser().parse_args([]).hardware) == ["cpu", "gpu"]
