"""Reads the tensors of a model folder: one safetensors file, or shards with an index."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from safetensors import SafetensorError, safe_open

from worker.engine.config import UnsupportedModel

if TYPE_CHECKING:
    import torch

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
LFS_HEAD = b"version https://git-lfs"


class BrokenCheckpoint(ValueError):
    """A file of the folder is missing or does not hold what it should."""


class Checkpoint:
    """The tensors of one folder, by name. A context manager: the files stay mapped while it is open.

    Raises UnsupportedModel for a folder of PyTorch pickles, BrokenCheckpoint for missing or broken files or tensors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open_files = ExitStack()
        self._file_of: dict[str, safe_open] = {}
        try:
            for path in _tensor_files(folder):
                tensors = self._open_files.enter_context(_opened(path))
                self._file_of.update(dict.fromkeys(tensors.keys(), tensors))
        except BaseException:
            self._open_files.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open_files.close()

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def __len__(self) -> int:
        return len(self._file_of)

    def names(self) -> list[str]:
        """Every tensor's name."""
        return list(self._file_of)

    def tensor(self, name: str) -> torch.Tensor:
        """A copy of one tensor in host memory. Raises BrokenCheckpoint if there is none of that name."""
        tensors = self._file_of.get(name)
        if tensors is None:
            raise BrokenCheckpoint(f"{self.folder} has no tensor {name!r}")
        found: torch.Tensor = tensors.get_tensor(name)  # type: ignore[no-untyped-call]  # safetensors' stub
        return found


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        with path.open("rb") as file:
            is_pointer = file.read(len(LFS_HEAD)) == LFS_HEAD
        what = "is a Git LFS pointer: `git lfs pull` fetches the weights" if is_pointer else f"cannot be read: {error}"
        raise BrokenCheckpoint(f"{path} {what}") from error


def _tensor_files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise BrokenCheckpoint(f"{folder} lacks {len(missing)} of {len(names)} shards: {', '.join(missing)}")
        return [folder / name for name in names]
    if any(folder.glob("pytorch_model*.bin*")):
        raise UnsupportedModel(
            f"{folder} holds PyTorch pickles, which can run code when they are read; convert it to safetensors"
        )
    raise BrokenCheckpoint(f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}")
