"""The same commit gives the same image, and an image says what it was built from."""

import json

import pytest

EPOCH = {"SOURCE_DATE_EPOCH": "1700000000"}
REWRITTEN = "compression=uncompressed,rewrite-timestamp=true"


def read(layout, digest):
    return json.loads((layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_text())


@pytest.mark.parametrize(
    ("target", "anew"),
    [
        ("operator", ("system", "deps", "code")),
        ("cpu", ("system", "deps-cpu", "native", "code")),
    ],
)
def test_two_builds_give_the_same_digests(build, target, anew):
    digests = []
    for stages in ((), anew):
        done, layout = build(target, EPOCH, anew=stages, layers=REWRITTEN)
        assert done.returncode == 0, done.stderr
        index = json.loads((layout / "index.json").read_text())
        manifest = read(layout, index["manifests"][0]["digest"])
        digests.append([layer["digest"] for layer in manifest["layers"]])
        digests[-1].append(manifest["config"]["digest"])
    assert digests[0] == digests[1]


def test_provenance_states_the_arguments_and_no_secret(build, tmp_path):
    (tmp_path / "token").write_text("hf_thisTokenMustBeFoundNowhere")
    secrets = (f"id=hf_token,src={tmp_path / 'token'}",)
    asks = ("--opt=attest:provenance=mode=max",)
    done, layout = build("operator", {"REVISION": "0123abc"}, secrets=secrets, options=asks)
    assert done.returncode == 0, done.stderr
    index = json.loads((layout / "index.json").read_text())
    found = read(layout, index["manifests"][0]["digest"])
    image, attestation = found["manifests"]
    about = attestation["annotations"]
    assert about["vnd.docker.reference.type"] == "attestation-manifest"
    assert about["vnd.docker.reference.digest"] == image["digest"]
    (layer,) = read(layout, attestation["digest"])["layers"]
    statement = json.loads((layout / "blobs" / "sha256" / layer["digest"][7:]).read_text())
    assert statement["predicateType"].startswith("https://slsa.dev/provenance/")
    text = json.dumps(statement)
    assert "0123abc" in text
    assert "hf_thisToken" not in text
