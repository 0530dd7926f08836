"""What a file system holds is counted, and what is not of it is not."""

import json
import subprocess
import sys

import pytest

from bench.image import census, contexts

STATUS = """\
Package: bash
Status: install ok installed

Package: gone
Status: deinstall ok config-files

Package: tar
Status: install ok installed
"""


@pytest.fixture
def root(tmp_path):
    def write(name, content, mode=0o644):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(mode)
        return file

    write("var/lib/dpkg/status", STATUS)
    write("model/model.safetensors", "w" * 1000)
    write("model/inner/config.json", "{}")
    write("models/other", "not the model's")
    gcc = write("usr/bin/gcc-14", "x" * 10, 0o755)
    (tmp_path / "usr/bin/gcc").symlink_to("gcc-14")
    (tmp_path / "usr/bin/x86_64-linux-gnu-gcc-14").hardlink_to(gcc)
    (tmp_path / "usr/bin/gone").symlink_to("nothing")
    (tmp_path / "usr/bin/circle").symlink_to("circle")
    (tmp_path / "usr/bin/python3").symlink_to("/opt/python/bin/only-in-the-image")
    write("opt/python/bin/only-in-the-image", "python", 0o755)
    write("usr/lib/libc.so.6", "c")
    (tmp_path / "usr/lib/libc.so").symlink_to("libc.so.6")
    write("usr/lib/libc.so.conf", "no library")
    write("usr/bin/su", "su", 0o4755)
    write("usr/bin/readme", "no program")
    write("usr/sbin/wall", "wall", 0o2755)
    (tmp_path / "bin").symlink_to("usr/bin")
    write("opt/venv/lib/site-packages/torch-2.dist-info/METADATA", "torch")
    write("opt/venv/lib/site-packages/fastapi-0.dist-info/METADATA", "fastapi")
    write("opt/venv/lib/site-packages/torch/lib/libtorch.so", "torch")
    return tmp_path


@pytest.fixture
def found(root):
    return census.census(root, ["/bin", "/usr/bin", "/usr/sbin", "/nowhere"])


def test_files_are_counted_once_whatever_they_are_called(found, root):
    sizes = {}
    for file in root.rglob("*"):
        if file.is_file() and not file.is_symlink():
            sizes[file.stat().st_ino] = file.stat().st_size
    assert found["files"] == len(sizes)
    assert found["bytes"] == sum(sizes.values())


def test_the_model_is_what_lies_in_its_folder(found):
    assert found["model_bytes"] == 1002


def test_packages_are_those_that_are_installed(found):
    assert found["os_packages"] == 2
    assert found["python_packages"] == 2


def test_an_image_without_a_list_of_packages_has_none(root):
    (root / "var/lib/dpkg/status").unlink()
    assert census.os_packages(root) == 0


def test_a_list_of_one_file_a_package_is_read_too(root):
    single = root / "var/lib/dpkg/status.d"
    single.mkdir()
    for name in ("libc6", "libc6.md5sums", "zlib1g"):
        (single / name).write_text("Package: x\n")
    (root / "var/lib/dpkg/status").unlink()
    assert census.os_packages(root) == 2


def test_libraries_are_those_of_the_system(found):
    assert found["libraries"] == 1


def test_programs_are_what_a_shell_would_find(found):
    # gcc-14 by three names, python3 by a link from /, su, wall; nothing twice for /bin is /usr/bin
    assert found["programs"] == 6
    assert found["compilers"] == ["gcc"]


def test_what_runs_as_somebody_else_is_named(found, root):
    assert found["setuid"] == ["/usr/bin/su", "/usr/sbin/wall"]


def test_it_runs_as_a_script_from_its_standard_input(root):
    # As a step of a build runs it.
    done = subprocess.run(
        [sys.executable, "-", str(root), "/bin:/usr/sbin"],
        input=contexts.CENSUS.read_text(),
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout)
    assert figures["model_bytes"] == 1002
    assert figures["compilers"] == ["gcc"]
