"""CUDA C compiled by NVRTC while the process runs, and launched through the driver.

NVRTC is a part of every CUDA build of torch, so that neither a compiler nor a cache must be
shipped: a file of kernels takes a second. Knows the two libraries; does not know what the kernels
compute.
"""

import ctypes
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

Argument = torch.Tensor | int | float | None

_POINTER, _INT, _LONG, _FLOAT = "p", "i", "l", "f"
_C_TYPES: dict[str, type[ctypes.c_void_p | ctypes.c_int | ctypes.c_longlong | ctypes.c_float]] = {
    _POINTER: ctypes.c_void_p,
    _INT: ctypes.c_int,
    _LONG: ctypes.c_longlong,
    _FLOAT: ctypes.c_float,
}
# Names of the driver's own header.
_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 6
_FUNCTION_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
_SHARED_WITHOUT_ASKING = 48 * 1024
# The first architecture whose kernels can be launched before the one they wait for has ended.
_FIRST_WITH_EARLY_LAUNCH = 9


class CudaModuleError(RuntimeError):
    """A library is missing, a kernel does not compile, or a launch was refused."""


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: an id and a union of 64 bytes, of which an int is used."""

    _fields_ = (
        ("id", ctypes.c_int),
        ("padding", ctypes.c_char * 4),
        ("value", ctypes.c_int),
        ("rest", ctypes.c_char * 60),
    )


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint),
    )


class Kernel:
    """One compiled function; calling it launches it on torch's current stream.

    Args:
        driver: libcuda.
        function: its handle.
        signature: a letter for each parameter: p pointer, i int, l long long, f float.
        early: whether it may be launched before its predecessor in the stream has ended.
    """

    def __init__(
        self, driver: ctypes.CDLL, function: ctypes.c_void_p, signature: str, *, early: bool
    ) -> None:
        self._driver, self._function = driver, function
        self._values = [_C_TYPES[letter]() for letter in signature]
        self._pointers = (ctypes.c_void_p * len(signature))(
            *(ctypes.addressof(value) for value in self._values)
        )
        self._attribute = _Attribute(id=_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, value=1)
        self._config = _Config(
            attributes=ctypes.pointer(self._attribute), attribute_count=1 if early else 0
        )
        self._allowed = _SHARED_WITHOUT_ASKING

    def __call__(
        self,
        grid: tuple[int, int, int],
        block: int,
        arguments: Sequence[Argument],
        *,
        shared: int = 0,
    ) -> None:
        """Launch it. None for a pointer is a null pointer; `shared` is bytes of dynamic memory.

        Raises:
            CudaModuleError: the driver refuses.
        """
        for value, argument in zip(self._values, arguments, strict=True):
            value.value = argument.data_ptr() if isinstance(argument, torch.Tensor) else argument
        if shared > self._allowed:
            _check(
                self._driver,
                self._driver.cuFuncSetAttribute(
                    self._function, _FUNCTION_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared
                ),
            )
            self._allowed = shared
        config = self._config
        config.grid[:] = grid
        config.block[:] = (block, 1, 1)
        config.shared = shared
        config.stream = torch.cuda.current_stream().cuda_stream
        _check(
            self._driver,
            self._driver.cuLaunchKernelEx(
                ctypes.byref(config), self._function, self._pointers, None
            ),
        )


def compile_kernels(
    source: str, defines: Mapping[str, str | int], signatures: Mapping[str, str]
) -> dict[str, Kernel]:
    """The functions of `source` that `signatures` names, for the current device.

    Args:
        source: CUDA C without includes; the functions are `extern "C"`.
        defines: macros.
        signatures: see `Kernel`.

    Raises:
        CudaModuleError: it does not compile; the message holds the compiler's log.
    """
    # The device's context becomes this thread's.
    torch.zeros(1, device="cuda")
    major, minor = torch.cuda.get_device_capability()
    options = [f"--gpu-architecture=sm_{major}{minor}"]
    options += [f"--define-macro={name}={value}" for name, value in defines.items()]
    binary = compile_binary(source, options)
    driver = ctypes.CDLL("libcuda.so.1")
    module = ctypes.c_void_p()
    _check(driver, driver.cuModuleLoadData(ctypes.byref(module), binary))
    early = major >= _FIRST_WITH_EARLY_LAUNCH
    kernels = {}
    for name, signature in signatures.items():
        function = ctypes.c_void_p()
        _check(driver, driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode()))
        kernels[name] = Kernel(driver, function, signature, early=early)
    return kernels


def compile_binary(source: str, options: Sequence[str]) -> bytes:
    """Machine code of `source`; needs NVRTC but no device.

    Raises:
        CudaModuleError: it does not compile, or NVRTC is not there.
    """
    nvrtc = _nvrtc()
    program = ctypes.c_void_p()
    if nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None
    ):
        raise CudaModuleError("NVRTC refuses to begin")
    try:
        encoded = [option.encode() for option in options]
        array = (ctypes.c_char_p * len(encoded))(*encoded)
        if nvrtc.nvrtcCompileProgram(program, len(encoded), array):
            raise CudaModuleError(f"the kernels do not compile: {_log(nvrtc, program)}")
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        binary = ctypes.create_string_buffer(size.value)
        if nvrtc.nvrtcGetCUBIN(program, binary):
            raise CudaModuleError("NVRTC gives no machine code")
        return binary.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _log(nvrtc: ctypes.CDLL, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    return log.value.decode(errors="replace")


def _nvrtc() -> ctypes.CDLL:
    """The NVRTC of torch's own CUDA version, whether or not torch has loaded it yet."""
    major = (torch.version.cuda or "").partition(".")[0]
    name = f"libnvrtc.so.{major}"
    for folder in _library_folders():
        if not (folder / name).is_file():
            continue
        # NVRTC looks for this one by its name alone, and finds it once it is loaded.
        for builtins in sorted(folder.glob(f"libnvrtc-builtins.so.{major}*")):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(folder / name))
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise CudaModuleError(f"{name} of torch's CUDA build is missing") from error


def _library_folders() -> list[Path]:
    """Where the wheels that torch depends on have their libraries."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    folders = [folder for root in roots for folder in sorted(Path(root).glob("*/lib"))]
    return [*folders, Path(torch.__file__).parent / "lib"]


def _check(driver: ctypes.CDLL, result: int) -> None:
    if result == 0:
        return
    text = ctypes.c_char_p()
    driver.cuGetErrorString(result, ctypes.byref(text))
    raise CudaModuleError(f"CUDA error: {(text.value or b'unknown').decode()}")
