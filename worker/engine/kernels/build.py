"""CUDA source to kernels that can be launched: NVRTC and the driver by ctypes, compiled cubins kept on disk.

Needs no nvcc and no headers. The only file that knows how kernels are built; nothing here is imported without a GPU.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path

import torch

SOURCES = Path(__file__).parent

_SUCCESS = 0
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_PROGRAMMATIC_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_UINT8, _FLOAT16, _SWIZZLE_128, _PROMOTE_256 = 0, 6, 3, 3  # CUtensorMap's enums


class KernelBuildError(RuntimeError):
    """A kernel did not compile or load; the text is the compiler's or the driver's."""


class TensorMap(ctypes.Structure):
    """CUtensorMap: how the copy engine cuts tiles out of a matrix. Passed to kernels by value."""

    _align_ = 64  # honoured from Python 3.13; `tensor_map` aligns by hand for older ones
    _fields_ = (("opaque", ctypes.c_uint64 * 16),)


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_uint64 * 8))


_OVERLAP = ctypes.pointer(_Attribute(_PROGRAMMATIC_SERIALIZATION, b"", (ctypes.c_uint64 * 8)(1)))


class _LaunchConfig(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", ctypes.c_uint),
    )


Argument = ctypes.c_int | ctypes.c_float | ctypes.c_void_p | ctypes.c_int64 | ctypes.Structure


class Kernel:
    """One function of a loaded cubin, for the device that was current when it was loaded."""

    def __init__(self, function: ctypes.c_void_p, name: str, shared_bytes: int) -> None:
        self._function = function
        self._name = name
        self._shared_bytes = shared_bytes
        self._device_index = torch.cuda.current_device()
        if shared_bytes > 48 * 1024:
            _check(
                _driver().cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, shared_bytes), f"shared memory of {name}"
            )

    def launch(self, grid: tuple[int, int, int], threads: int, arguments: Sequence[Argument], *, overlap: bool) -> None:
        """Queue the kernel on torch's current stream.

        Args:
            overlap: it may start before the kernel before it has finished (programmatic dependent launch).
        """
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        stream = torch._C._cuda_getCurrentRawStream(self._device_index)  # torch.cuda.current_stream takes 20 us
        config = _LaunchConfig(grid, (threads, 1, 1), self._shared_bytes, stream, _OVERLAP, int(overlap))
        _check(_driver().cuLaunchKernelEx(ctypes.byref(config), self._function, pointers, None), self._name)


def load_kernels(
    file: str, defines: Mapping[str, int], prelude: str, shared_bytes: Mapping[str, int]
) -> dict[str, Kernel]:
    """Compile a source file of this folder for the current device, or find its cubin on disk, and load it.

    Args:
        file: name of the .cu file; device.cuh goes before it.
        defines: macros it is compiled with.
        prelude: text put before the file.
        shared_bytes: names of the wanted kernels with the dynamic shared memory each is launched with.

    Raises:
        KernelBuildError: no compiler, no driver, or a source that does not compile.
    """
    text = source_text(file, defines, prelude)
    major, minor = torch.cuda.get_device_capability()
    cubin = _cubin(text, f"sm_{major}{minor}" + ("a" if major == 9 else ""), file)
    torch.cuda.current_stream()  # the primary context exists from here on
    module = ctypes.c_void_p()
    _check(_driver().cuModuleLoadData(ctypes.byref(module), cubin), f"loading {file}")
    found = {}
    for name, num_bytes in shared_bytes.items():
        function = ctypes.c_void_p()
        _check(_driver().cuModuleGetFunction(ctypes.byref(function), module, name.encode()), name)
        found[name] = Kernel(function, name, num_bytes)
    return found


def runs_on(device: torch.device) -> bool:
    """Whether the kernels run on this device: a Hopper GPU (the products use its wgmma and its copy engine)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def source_text(file: str, defines: Mapping[str, int], prelude: str) -> str:
    """All that the compiler sees of one variant of a source file."""
    macros = "".join(f"#define {name} {value}\n" for name, value in defines.items())
    return macros + (SOURCES / "device.cuh").read_text() + prelude + (SOURCES / file).read_text()


def compile_source(text: str, arch: str, file: str) -> bytes:
    """The cubin of a text for an architecture such as sm_90a; needs no GPU. Raises KernelBuildError."""
    nvrtc = _nvrtc()
    program = ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), file.encode(), 0, None, None), "nvrtc")
    options = [b"--std=c++17", f"--gpu-architecture={arch}".encode()]
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    if status != _SUCCESS:
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise KernelBuildError(f"{file}: {log.value.decode(errors='replace')}")
    size = ctypes.c_size_t()
    _check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)), "nvrtc")
    cubin = ctypes.create_string_buffer(size.value)
    _check(nvrtc.nvrtcGetCUBIN(program, cubin), "nvrtc")
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return cubin.raw


def tensor_map(x: torch.Tensor, box_rows: int) -> TensorMap:
    """The map of x [M, K] fp16 or int8, rows of K together, in boxes of `box_rows` x 128 bytes; zeros past its ends."""
    return _tensor_map(x.data_ptr(), *x.shape, x.stride(0), box_rows, x.itemsize)


@lru_cache(maxsize=4096)
def _tensor_map(address: int, rows: int, columns: int, row_stride: int, box_rows: int, itemsize: int) -> TensorMap:
    room = ctypes.create_string_buffer(192)
    aligned = (ctypes.addressof(room) + 63) & ~63
    _check(
        _driver().cuTensorMapEncodeTiled(
            ctypes.c_void_p(aligned),
            _FLOAT16 if itemsize == 2 else _UINT8,
            2,
            ctypes.c_void_p(address),
            (ctypes.c_uint64 * 2)(columns, rows),
            (ctypes.c_uint64 * 1)(row_stride * itemsize),
            (ctypes.c_uint32 * 2)(128 // itemsize, box_rows),
            (ctypes.c_uint32 * 2)(1, 1),
            0,
            _SWIZZLE_128,
            _PROMOTE_256,
            0,
        ),
        "tensor map",
    )
    found = TensorMap()
    ctypes.memmove(ctypes.addressof(found), aligned, 128)
    return found


def cache_folder() -> Path:
    """Where compiled cubins are kept; it need not be there yet."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "llamaherd" / "kernels"


def _cubin(text: str, arch: str, file: str) -> bytes:
    """The compiled text, from disk where it is there. Keyed by text, architecture and compiler."""
    version = _nvrtc_version()
    key = hashlib.sha256(f"{text}\0{arch}\0{version}".encode()).hexdigest()[:32]
    path = cache_folder() / f"{Path(file).stem}-{key}.cubin"
    if path.exists():
        return path.read_bytes()
    cubin = compile_source(text, arch, file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file_:
        file_.write(cubin)
    os.replace(file_.name, path)  # whole or not at all, whoever else compiles it
    return cubin


def _nvrtc_version() -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "nvrtc")
    return f"{major.value}.{minor.value}"


@cache
def _nvrtc() -> ctypes.CDLL:
    """The library beside torch: of the CUDA version that torch was built for."""
    name = f"libnvrtc.so.{(torch.version.cuda or '13').split('.')[0]}"
    beside = [path for root in sys.path for path in Path(root or ".").glob(f"nvidia/*/lib/{name}")]
    for path in beside:
        for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins))  # the compiler opens it by name, which finds it only once it is loaded
    for candidate in (*map(str, beside), name):
        try:
            return ctypes.CDLL(candidate)
        except OSError:
            continue
    raise KernelBuildError(f"{name} is not installed")


@cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise KernelBuildError("no CUDA driver") from error


def _check(status: int, what: str) -> None:
    if status != _SUCCESS:
        raise KernelBuildError(f"{what}: CUDA error {status}")
