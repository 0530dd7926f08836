"""What a build says is read as its steps, and a change of the code is made in a copy alone."""

import base64
import hashlib
import json
import re

import pytest

from bench.image import HERE, ROOT, builds, contexts, layers, pods, python_full, starts
from bench.image.variants import ALL, MODEL, MULTI_STAGE, SINGLE_STAGE, named
from dev.images import builder
from dev.images.sources import Sources

HUB = "http://127.0.0.1:1"


def vertex(digest, name, *, started=None, completed=None, cached=False):
    times = {"started": started, "completed": completed}
    told = {key: f"2026-11-28T12:00:{value}Z" for key, value in times.items() if value}
    return {"digest": digest, "name": name, **told, **({"cached": True} if cached else {})}


STATUSES = (
    {"vertexes": [vertex("a", "[internal] load build context")]},
    {"vertexes": [vertex("c", "[server 2/3] COPY . .", started="02.000000001")]},
    {"vertexes": [vertex("a", "[internal] load build context", started="01")]},
    {"vertexes": [vertex("a", "[internal] load build context", started="01", completed="01.5")]},
    {
        "vertexes": [
            vertex("b", "[server 1/3] RUN apt-get", started="01.2", completed="01.2", cached=True)
        ]
    },
    {"vertexes": [vertex("c", "[server 2/3] COPY . .", started="02", completed="04.25")]},
    {
        "vertexes": [
            vertex("f", "[context x:1] load from client", started="04.25", completed="04.25")
        ]
    },
    {"vertexes": [vertex("d", "exporting to image", started="04.3", completed="06.3")]},
    {"vertexes": [vertex("e", "[server 3/3] RUN never begun")]},
    {"logs": [{"vertex": "c", "data": base64.b64encode(b"one\ntwo\n").decode()}]},
)
LINES = [*map(json.dumps, STATUSES), "error: failed to solve", ""]


def test_steps_are_told_in_the_order_of_their_beginning_with_their_times():
    assert [(s.name, s.seconds, s.cached) for s in builds.steps(LINES)] == [
        ("[internal] load build context", 0.5, False),
        ("[server 1/3] RUN apt-get", 0, True),
        ("[server 2/3] COPY . .", 2.25, False),
        ("[context x:1] load from client", 0, False),
        ("exporting to image", 2.0, False),
    ]


def test_work_is_what_was_not_found_in_the_cache_and_repeated_are_the_dockerfiles_steps():
    build = builds.Build(9.0, builds.steps(LINES), "sha256:1")
    assert build.work == pytest.approx(4.75)
    assert build.repeated == ["[server 2/3] COPY . ."]


def test_what_steps_and_buildctl_say_is_kept_for_the_error():
    assert builds.said(LINES) == ["one", "two", "error: failed to solve", ""]


def test_new_bytes_are_those_of_layers_that_were_not_there():
    before = [layers.Layer("a", 10), layers.Layer("b", 5)]
    after = [layers.Layer("a", 10), layers.Layer("c", 3)]
    assert layers.new_bytes(before, after) == 3
    assert layers.new_bytes(before, before) == 0
    # One blob that two layers are is sent once.
    assert layers.new_bytes([], [*after, after[1]]) == 13


def test_layers_are_told_with_the_steps_that_made_them():
    manifest = {"layers": [{"digest": "a", "size": 10}, {"digest": "b", "size": 5}]}
    steps = [{"created_by": "FROM"}, {"created_by": "ENV", "empty_layer": True}]
    config = {"history": [*steps, {"created_by": "COPY"}], "config": {"Env": ["A=b=c", "PATH=/x"]}}
    assert layers.of(manifest, config) == [
        layers.Layer("a", 10, "FROM"),
        layers.Layer("b", 5, "COPY"),
    ]
    assert [layer.step for layer in layers.of(manifest, {"history": steps})] == ["", ""]
    assert layers.path(config) == "/x"


def digests(folder):
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_a_copy_holds_what_builds_see_and_a_change_is_one_comment(tmp_path):
    checkout = (ROOT / contexts.CODE).read_bytes()
    contexts.copy(tmp_path, ALL)
    copied = digests(tmp_path)
    assert {v.dockerfile.name for v in ALL} <= set(copied)
    assert "inference/native/build.py" in copied
    assert not [name for name in copied if "__pycache__" in name or "_native." in name]
    contexts.change_code(tmp_path, "a comment")
    changed = digests(tmp_path)
    assert {name for name in copied if copied[name] != changed[name]} == {contexts.CODE}
    assert set(copied) == set(changed)
    compile((tmp_path / contexts.CODE).read_text(), "server.py", "exec")
    assert (ROOT / contexts.CODE).read_bytes() == checkout


def test_the_census_is_two_stages_after_the_one_it_counts(tmp_path):
    text = contexts.with_census(
        "FROM x AS builder\nFROM scratch AS cpu\n", "cpu", python="builder", path="/bin"
    )
    assert text.count(contexts.CENSUS.read_text()) == 1
    stages = re.findall(r"(?m)^FROM (\S+) AS (\S+)$", text)
    assert stages == [
        ("x", "builder"),
        ("scratch", "cpu"),
        ("builder", "bench-census"),
        ("scratch", contexts.CENSUS_STAGE),
    ]
    assert "--mount=type=bind,from=cpu,target=/bench-root python - /bench-root '/bin' " in text
    # The end of the script, and nothing in the script that looks like it.
    assert text.splitlines().count("CENSUS") == 1


@pytest.mark.parametrize("variant", ALL, ids=lambda variant: variant.name)
@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
def test_every_stage_and_argument_of_a_variant_is_in_its_dockerfile(variant, hardware):
    text = variant.dockerfile.read_text()
    image = variant.image(hardware)
    for stage in (image.target, variant.python):
        assert re.search(rf"(?m)^FROM \S+ AS {stage}$", text)
    declared = set(re.findall(r"(?m)^ARG (\w+)", text))
    assert declared >= {*variant.build_arguments(hardware), "PACKAGE_INDEX", "MODEL_ID"}
    assert variant.full == ("PYTHON_IMAGE" in declared)


def test_the_two_single_stage_files_differ_in_their_order_alone():
    def lines(name):
        text = (HERE / name).read_text().partition("ARG PYTHON_IMAGE")[2]
        return sorted(
            line for line in text.splitlines() if line != "COPY requirements requirements"
        )

    assert lines("Dockerfile.single-stage") == lines("Dockerfile.single-stage-ordered")


def test_one_image_is_named_once_for_all():
    references = [variant.image(each).reference for variant in ALL for each in ("cpu", "gpu")]
    assert len(set(references)) == len(references)
    assert all(reference.startswith("localhost/bench-image:") for reference in references)
    with pytest.raises(ValueError, match="no image two-stage: there are multi-stage, single-stage"):
        named(["multi-stage", "two-stage"])
    with pytest.raises(ValueError, match="no image is named"):
        named([])


def test_a_build_is_of_the_copy_with_the_hardware_it_is_for(monkeypatch, tmp_path):
    monkeypatch.setattr(builder.tools, "path", lambda name: tmp_path / name)
    given = builds.given(SINGLE_STAGE, "gpu", Sources({"HF_ENDPOINT": HUB}, [], {}, {}))
    command = builder.command(
        SINGLE_STAGE.image("gpu"), given, "type=tar", context=tmp_path, progress="rawjson"
    )
    assert "--opt=build-arg:HARDWARE=gpu" in command
    assert f"--opt=build-arg:HF_ENDPOINT={HUB}" in command
    assert f"--opt=build-arg:MODEL_ID={MODEL.id}" in command
    assert "--opt=filename=Dockerfile.single-stage" in command
    assert f"--local=context={tmp_path}" in command
    assert f"--local=dockerfile={tmp_path}" in command
    assert "--progress=rawjson" in command


def test_an_own_slim_image_asks_for_the_name_of_the_full_one(monkeypatch):
    nothing = Sources({}, [], {}, {})
    monkeypatch.setenv("BASE_IMAGE", "registry.example.com/python:3.13-slim")
    with pytest.raises(ValueError, match="--python-image"):
        python_full.given(nothing, None)
    name = "registry.example.com/python:3.13"
    assert python_full.given(nothing, name).arguments == {"PYTHON_IMAGE": name}


def test_the_hub_is_told_to_who_fetches_from_it_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(starts.tools, "path", lambda name: tmp_path / name)
    ours, theirs = (starts.server(variant, HUB).command for variant in (MULTI_STAGE, SINGLE_STAGE))
    assert f"--env=HF_ENDPOINT={HUB}" in theirs
    assert not [part for part in ours if "HF_ENDPOINT" in part]
    assert "--read-only" in ours
    assert "--read-only" not in theirs
    assert ours[-2:] == ("localhost/bench-image:multi-stage-cpu", "bench-image-{port}")


def test_pods_differ_in_what_the_images_allow_and_need():
    ours, theirs = (pods.manifest(variant, HUB)["spec"] for variant in (MULTI_STAGE, SINGLE_STAGE))
    assert ours["containers"][0]["securityContext"] == {"readOnlyRootFilesystem": True}
    assert ours["containers"][0]["env"] == []
    assert "securityContext" not in theirs["containers"][0]
    assert theirs["containers"][0]["env"] == [{"name": "HF_ENDPOINT", "value": HUB}]
    probes = [spec["containers"][0]["readinessProbe"] for spec in (ours, theirs)]
    assert probes[0] == probes[1]
