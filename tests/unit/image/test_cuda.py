"""Libraries that go are replaced by ones that load, have the symbols, and say what is missing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llm_image import ImageError, cuda, elf

FFT = """\
int cufftPlan(int n) { return n; }
int cufftUnused(void) { return 1; }
int cufftData[4] = {1};
"""
USER = """\
int cufftPlan(int);
extern int cufftData[4];
int run(void) { return cufftPlan(cufftData[0]); }
"""
VERSIONS = "libcufft.so.12 { global: cufft*; };\n"


def compiled(path, source, *options):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.with_suffix(".c")
    text.write_text(source)
    zig = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", str(text)]
    subprocess.run([*zig, f"-Wl,-soname,{path.name}", *options, "-o", str(path)], check=True)
    text.unlink()
    return path


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site-packages: a torch that is linked to libraries of NVIDIA's, and some it is not."""
    site = tmp_path_factory.mktemp("site")
    held = Path(torch.__file__).parent / "lib" / "libc10.so"
    (site / "torch" / "lib").mkdir(parents=True)
    (site / "torch" / "lib" / "libc10.so").write_bytes(held.read_bytes())
    folder = site / "nvidia" / "cu13" / "lib"
    for pattern in cuda.KEPT:
        name = pattern.replace("*", "13")
        compiled(folder / name, f"int kept_{name.split('.')[0].replace('-', '_')}(void);")
    script = site / "versions"
    script.write_text(VERSIONS)
    fft = compiled(folder / "libcufft.so.12", FFT, f"-Wl,--version-script={script}")
    script.unlink()
    compiled(folder / "libcufftw.so.12", "int unlinked(void) { return 0; }")
    compiled(folder / "libnvrtc.alt.so.13", "int twice(void) { return 0; }")
    compiled(site / "torch" / "lib" / "libtorch_cuda.so", USER, str(fft))
    (site / "nvidia" / "cu13" / "include").mkdir()
    (site / "nvidia" / "cu13" / "include" / "of.some.cufft.h").write_text("int cufftPlan(int);")
    for name, file in [("cufft", "libcufft.so.12"), ("cufftw", "libcufftw.so.12")]:
        metadata = site / f"nvidia_{name}-12.dist-info"
        metadata.mkdir()
        (metadata / "RECORD").write_text(f"nvidia/cu13/lib/{file},,\n{metadata.name}/RECORD,,\n")
    list(cuda.reduce(site))
    return site


def test_what_serving_calls_stays(site):
    names = {path.name for path in (site / "nvidia").rglob("*.so*")}
    assert {pattern.replace("*", "13") for pattern in cuda.KEPT} <= names


def test_what_nothing_is_linked_to_goes(site):
    left = {path.name for path in site.rglob("*")}
    assert not left & {"libcufftw.so.12", "libnvrtc.alt.so.13", "of.some.cufft.h", "include"}
    assert "nvidia_cufftw-12.dist-info" not in left
    assert "nvidia_cufft-12.dist-info" in left


def test_a_stub_defines_what_is_wanted_under_its_version(site):
    stub = site / "nvidia" / "cu13" / "lib" / "libcufft.so.12"
    assert elf.soname(stub) == "libcufft.so.12"
    found = {n: s for n, s in elf.defined(stub).items() if n.startswith("cufft")}
    assert found == {
        "cufftPlan": elf.Symbol("cufftPlan", "libcufft.so.12"),
        "cufftData": elf.Symbol("cufftData", "libcufft.so.12", 16),
    }


def test_a_program_loads_and_is_told_when_it_calls_one(site):
    user = site / "torch" / "lib" / "libtorch_cuda.so"
    stub = site / "nvidia" / "cu13" / "lib" / "libcufft.so.12"
    code = f"import ctypes; ctypes.CDLL('{stub}', ctypes.RTLD_GLOBAL); u = ctypes.CDLL('{user}')"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert loaded.returncode == 0, loaded.stderr
    called = subprocess.run(
        [sys.executable, "-c", code + "; u.run()"], capture_output=True, check=False
    )
    # Nobody catches torch's error below ctypes.
    assert b"cufftPlan: this image leaves libcufft.so.12 out" in called.stderr


def test_a_library_that_is_no_longer_called_so_is_told(site, tmp_path):
    (tmp_path / "nvidia").mkdir()
    (tmp_path / "torch").mkdir()
    with pytest.raises(ImageError, match=r"no library is called libcublas\.so"):
        list(cuda.reduce(tmp_path))


def test_only_libraries_are_read_as_such(tmp_path):
    (tmp_path / "script.so").write_text("INPUT(libc.so.6)")
    assert elf.libraries(tmp_path) == []
