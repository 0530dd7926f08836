"""The CPU build of torch is what it claims to be."""

import base64
import csv
import hashlib
import subprocess
import sys
import zipfile
from fnmatch import fnmatch

import pytest

from dev.stand_ins import torch_wheel
from dev.stand_ins.reach import Real, is_reachable

pytestmark = pytest.mark.skipif(
    is_reachable(Real.TORCH_CPU), reason="PyTorch's own CPU build is used here"
)

HOST = "{}.{}".format(*sys.version_info)
CUDA = ("cuda", "cudnn", "cublas", "cufft", "cusolver", "cusparse", "curand", "cufile")
CUDA += ("nccl", "nvrtc", "nvshmem", "nvjitlink", "cupti", "nvtx", "triton")


@pytest.fixture(scope="module", params=[HOST, "3.13"])
def wheel(request):
    with zipfile.ZipFile(torch_wheel.ensure(request.param)) as archive:
        yield archive


def test_it_holds_no_cuda_library_but_the_small_ones_it_links(wheel):
    sizes = {
        entry.filename: entry.file_size
        for entry in wheel.infolist()
        if fnmatch(entry.filename, "*.so*") and any(c in entry.filename.lower() for c in CUDA)
    }
    names = {name.rsplit("/", 1)[-1] for name in sizes}
    assert names == {
        "libcudart.so.13",
        "libcupti.so.13",
        "libc10_cuda.so",
        # stubs
        "libtorch_cuda.so",
        "libcudnn.so.9",
        "libcufile.so.0",
    }
    assert sum(sizes.values()) < 12_000_000
    stubs = [name for name in sizes if name.endswith(tuple(torch_wheel.STUBS))]
    assert sum(sizes[name] for name in stubs) < 200_000


def test_its_record_fits_its_files(wheel):
    (record,) = (name for name in wheel.namelist() if name.endswith(".dist-info/RECORD"))
    assert "+cpu.dist-info" in record
    rows = {row[0]: row[1:] for row in csv.reader(wheel.read(record).decode().splitlines())}
    assert set(rows) == set(wheel.namelist())
    changed = [n for n in rows if "lib/libtorch_cuda" in n or n.startswith("torch/version.py")]
    for name in [*changed, "torch/__init__.py", "torch/lib/libc10.so"]:
        content = wheel.read(name)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        assert rows[name] == [f"sha256={digest}", str(len(content))]


def test_it_asks_for_no_cuda_package(wheel):
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    needs = [line for line in wheel.read(metadata).decode().splitlines() if "Requires-Dist" in line]
    assert any("filelock" in need for need in needs)
    assert not [need for need in needs if any(c in need for c in ("nvidia", "cuda", "triton"))]


CHECK = """
import torch

assert torch.__version__ == "2.15.0+cpu", torch.__version__
assert torch.version.cuda is None
assert not torch.cuda.is_available() and torch.cuda.device_count() == 0
assert not torch.backends.cuda.is_built() and not torch.distributed.is_available()
assert torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()

a, b = torch.randn(96, 64), torch.randn(64, 48)
exact = [[sum(x * y for x, y in zip(row, col)) for col in b.T.tolist()] for row in a.tolist()]
exact = torch.tensor(exact)
assert torch.allclose(a @ b, exact, atol=1e-4)
half = (a.bfloat16() @ b.bfloat16()).float()
assert (half - exact).norm() / exact.norm() < 0.01
q = torch.randn(1, 2, 8, 16, dtype=torch.bfloat16)
attention = torch.nn.functional.scaled_dot_product_attention(q, q, q)
assert attention.isfinite().all()
try:
    torch.zeros(1, device="cuda")
except (RuntimeError, AssertionError) as error:
    assert "CUDA" in str(error)
else:
    raise SystemExit("a tensor landed on a device that is not there")
"""


def test_it_imports_and_computes():
    subprocess.run([sys.executable, "-c", CHECK], check=True, timeout=120)
