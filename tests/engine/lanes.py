"""The sources of Hopper kernels on the CPU: compiled by g++ with lanes.h in device.cuh's place."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from worker.engine.kernels.build import SOURCES, Argument

LAUNCH = """
template <typename... A, size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*(A*)arguments[I]...);
}
template <typename... A> static void launch(void (*kernel)(A...), Index grid, int num_threads, void** arguments) {
  for (int z = 0; z < grid.z; z++)
    for (int y = 0; y < grid.y; y++)
      for (int x = 0; x < grid.x; x++)
        run_block({x, y, z}, num_threads, [&] { call(kernel, arguments, std::index_sequence_for<A...>()); });
}
"""


class LaneKernel:
    """In the place of build.Kernel."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self._launch = library[f"{name}_on_lanes"]

    def launch(self, grid: tuple[int, int, int], threads: int, arguments: Sequence[Argument], *, overlap: bool) -> None:
        """Run every block of the grid, one after the other; nothing overlaps."""
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        self._launch(*grid, threads, pointers)


def compile_on_lanes(
    folder: Path, file: str, defines: Mapping[str, int], prelude: str, names: Sequence[str]
) -> dict[str, LaneKernel]:
    """As build.load_kernels, by a library in `folder`."""
    macros = "".join(f"#define {name} {value}\n" for name, value in defines.items())
    kernels = (SOURCES / file).read_text().replace("extern __shared__ u8 raw[];", "u8* const raw = shared_memory;")
    launches = "".join(
        f'extern "C" void {name}_on_lanes(int x, int y, int z, int num_threads, void** arguments) '
        f"{{ launch({name}, {{x, y, z}}, num_threads, arguments); }}\n"
        for name in names
    )
    lanes = (Path(__file__).parent / "lanes.h").read_text()
    stem = "-".join([Path(file).stem, *map(str, defines.values()), str(len(prelude))])
    source, library = folder / f"{stem}.cpp", folder / f"{stem}.so"
    source.write_text(macros + lanes + prelude + kernels + LAUNCH + launches)
    options = ["-std=c++17", "-O1", "-ffp-contract=off", "-w", "-shared", "-fPIC"]
    subprocess.run(["g++", *options, source, "-o", library], check=True)
    loaded = ctypes.CDLL(str(library))
    return {name: LaneKernel(loaded, name) for name in names}
