"""What a build is told: real defaults, stand-ins through arguments alone, secrets as secrets."""

import json
import re

import pytest

from dev.cluster import paths
from dev.images import __main__ as command_line
from dev.images import builder, catalog, sources
from dev.images.sources import Sources
from dev.stand_ins import reach
from dev.stand_ins.reach import Real
from dev.stand_ins.repositories import Repository

NOTHING = Sources(arguments={}, secrets=[], layouts={}, repositories={})


@pytest.fixture
def buildctl(monkeypatch, tmp_path):
    monkeypatch.setattr(builder.tools, "path", lambda name: tmp_path / name)
    return lambda image, given=NOTHING: builder.command(image, given)


def dockerfile_defaults(name: str) -> dict[str, str]:
    text = (paths.CHECKOUT / name).read_text()
    return dict(re.findall(r"(?m)^ARG (\w+)=\"?([^\"\n]*)\"?$", text))


def test_the_dockerfiles_name_the_real_things():
    defaults = dockerfile_defaults("Dockerfile.inference")
    assert defaults["BASE_IMAGE"] == "python:3.13-slim"
    assert defaults["HF_ENDPOINT"] == "https://huggingface.co"
    assert defaults["TORCH_CPU_INDEX"] == "https://download.pytorch.org/whl/cpu"
    assert dockerfile_defaults("Dockerfile.operator")["BASE_IMAGE"] == "python:3.13-slim"


def test_where_all_is_reachable_a_build_gets_no_stand_in(monkeypatch):
    for name in (*sources.PASSED_ON, "PIP_INDEX_URL", "SSL_CERT_FILE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(reach, "_answers", lambda: dict.fromkeys(Real, True))
    with sources.opened(list(catalog.ALL)) as opened:
        assert opened == NOTHING


def test_a_model_is_an_argument_and_the_operator_has_none(buildctl):
    gpu = buildctl(catalog.named("smollm2-gpu"))
    assert "--opt=build-arg:MODEL_ID=HuggingFaceTB/SmolLM2-135M-Instruct" in gpu
    assert "--opt=target=gpu" in gpu
    assert not [part for part in buildctl(catalog.OPERATOR) if "MODEL" in part]


def test_a_mirrored_model_is_pinned_to_its_content(buildctl):
    image = catalog.named("minilm-cpu")
    held = {image.model.id: Repository(image.model.id, "a" * 40, {})}
    given = Sources(arguments={}, secrets=[], layouts={}, repositories=held)
    assert f"--opt=build-arg:MODEL_REVISION={'a' * 40}" in buildctl(image, given)


def test_a_stand_in_base_image_is_a_context_of_the_real_name(buildctl, tmp_path):
    (tmp_path / "index.json").write_text(json.dumps({"manifests": [{"digest": "sha256:1"}]}))
    given = Sources({}, [], {"python:3.13-slim": tmp_path}, {})
    command = buildctl(catalog.OPERATOR, given)
    assert "--opt=context:python:3.13-slim=oci-layout://l0@sha256:1" in command
    assert f"--oci-layout=l0={tmp_path}" in command


def test_a_directory_takes_the_place_of_a_stage(buildctl, tmp_path):
    given = Sources({}, [], {}, {}, {"model": tmp_path})
    command = buildctl(catalog.named("smollm2-weights"), given)
    assert "--opt=context:model=local:model" in command
    assert f"--local=model={tmp_path}" in command
    stages = (paths.CHECKOUT / "Dockerfile.inference").read_text()
    assert "\nFROM scratch AS model\n" in stages
    assert "COPY --from=model " not in stages  # what is served is proven first


def test_a_token_is_no_argument(buildctl, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(reach, "_answers", lambda: dict.fromkeys(Real, True))
    with sources.opened([catalog.named("smollm2-cpu")]) as opened:
        command = buildctl(catalog.named("smollm2-cpu"), opened)
    assert "--secret=id=hf_token,env=HF_TOKEN" in command
    assert "hf_secret" not in " ".join(command)


def test_every_argument_that_is_passed_is_one_the_dockerfile_has():
    text = (paths.CHECKOUT / "Dockerfile.inference").read_text()
    declared = set(re.findall(r"(?m)^ARG (\w+)", text))
    assert declared >= {*sources.PASSED_ON, "MODEL_ID", "MODEL_REVISION"}


def test_every_argument_is_documented_and_can_be_baked():
    files = ("Dockerfile.inference", "Dockerfile.operator")
    text = "".join((paths.CHECKOUT / name).read_text() for name in files)
    declared = set(re.findall(r"(?m)^ARG (\w+)", text))
    documented = (paths.CHECKOUT / "docs/building.md").read_text()
    assert set(re.findall(r"(?m)^\| `([A-Z_]+)` \|", documented)) == declared
    baked = (paths.CHECKOUT / "docker-bake.hcl").read_text()
    # buildx passes the last one of its own accord.
    passed = {*re.findall(r"(?m)^    ([A-Z_]+) = \1$", baked), "SOURCE_DATE_EPOCH"}
    assert passed == declared


def test_an_unknown_image_is_refused_with_those_there_are(capsys):
    assert command_line.main(["build", "smollm3"]) == 2
    assert "there is no image 'smollm3'; there are operator, smollm2-cpu" in capsys.readouterr().err


def test_steps_that_took_a_while_are_told(capsys, tmp_path):
    lines = ["#5 [deps 1/2] RUN pip\n", "#5 12.1 output\n", "#5 DONE 12.3s\n", "#6 DONE 0.1s\n"]
    with (tmp_path / "log").open("w") as log:
        builder._follow(lines, log)
    assert capsys.readouterr().out == "  [deps 1/2] RUN pip … 12.3 s\n"
    assert (tmp_path / "log").read_text() == "".join(lines)
