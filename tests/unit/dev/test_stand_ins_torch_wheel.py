"""The edits that turn torch's wheel into a CPU build, and the stub libraries."""

import ctypes
import shutil
import subprocess

import pytest

from dev.stand_ins import packages, stub_library, torch_wheel


def test_cuda_is_hidden_wherever_the_extension_is_imported():
    text = (
        "if flags:\n    from torch._C import *  # noqa: F403\n"
        "else:\n        from torch._C import *  # noqa: F403\n"
    )
    edited = torch_wheel._hide_cuda(text)
    assert "    _C._has_cuda = False" in edited
    assert "        _C._has_cuda = False" in edited
    compile(edited, "torch/__init__.py", "exec")


def test_version_names_a_cpu_build_without_cuda():
    text = "__version__ = '2.15.0+cu132'\ncuda: Optional[str] = '13.2'\nhip: Optional[str] = None\n"
    assert torch_wheel._name_cpu(text) == (
        "__version__ = '2.15.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n"
    )


def test_cuda_requirements_go_and_others_stay():
    text = (
        "Name: torch\nVersion: 2.15.0\nRequires-Dist: filelock\n"
        'Requires-Dist: cuda-toolkit[cublas]==13.2.2; platform_system == "Linux"\n'
        "Requires-Dist: nvidia-nccl-cu13==2.30.7\nRequires-Dist: triton~=3.9.0\n\nVersion: prose\n"
    )
    assert torch_wheel._drop_needs(text) == (
        "Name: torch\nVersion: 2.15.0+cpu\nRequires-Dist: filelock\n\nVersion: prose\n"
    )


@pytest.mark.parametrize(
    "edit", [torch_wheel._hide_cuda, torch_wheel._name_cpu, torch_wheel._drop_needs]
)
def test_a_release_that_the_recipe_does_not_know_is_refused(edit):
    with pytest.raises(packages.PackageError, match="mend it"):
        edit("nothing that is known\n")


def test_pins_are_read_with_all_their_hashes(tmp_path):
    lock = tmp_path / "lock.txt"
    lock.write_text(
        "a==1 \\\n    --hash=sha256:00 \\\n    --hash=sha256:01\n    # via b\n"
        "aa==2 ; python_version < '3' \\\n    --hash=sha256:02\n"
    )
    assert packages.pin(lock, "a").split() == [
        "a==1",
        "\\",
        "--hash=sha256:00",
        "\\",
        "--hash=sha256:01",
    ]
    assert packages.version(lock, "aa") == "2"
    with pytest.raises(packages.PackageError, match=r"lock\.txt pins no b"):
        packages.pin(lock, "b")


def test_the_cpu_and_gpu_images_have_one_version_of_torch():
    pinned = (packages.REQUIREMENTS / "torch-cpu.txt").read_text().splitlines()[-1]
    assert pinned == f"torch=={packages.version(torch_wheel.LOCK, 'torch')}+cpu"


def test_a_stub_library_satisfies_a_library_that_wants_symbols(tmp_path):
    symbols = [stub_library.Symbol("wanted"), stub_library.Symbol("table", 24)]
    symbols.append(stub_library.Symbol("_ZTI7Missing"))
    stub = tmp_path / "libmissing.so.1"
    stub_library.write(stub, symbols, version="libmissing.so.1")
    assert set(stub_library.defined(stub)) >= {
        "wanted@@libmissing.so.1",
        "table@@libmissing.so.1",
        "_ZTI7Missing@@libmissing.so.1",
    }

    source = tmp_path / "user.c"
    source.write_text(
        "extern char table[24]; void *wanted(void);\n"
        "int ask(void) { return wanted() != 0 && table[23] == 0; }\n"
    )
    user = tmp_path / "libuser.so"
    compiler = shutil.which("gcc")
    assert compiler
    command = [compiler, "-shared", "-fPIC", source, stub, f"-Wl,-rpath,{tmp_path}", "-o", user]
    subprocess.run(command, check=True)
    assert stub_library.undefined(user).items() >= {("wanted", "libmissing.so.1")}
    assert ctypes.CDLL(str(user)).ask() == 1
