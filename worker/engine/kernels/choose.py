"""The next tokens, chosen on the GPU: parameters in, tokens out, by copies that nobody waits for. Launches choose.cu.

Equal to sampler.py for rows without rules, without the typical set and without alternatives (`takes`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from worker.engine.fixed_point import fraction_bits
from worker.engine.kernels.build import Kernel, load_kernels
from worker.engine.logprobs import ScoredToken
from worker.engine.sampler import SamplingRow

MAX_VOCABULARY = 1 << 16
_SHARED_BYTES = 4 * 4 * (4096 + 16) + 2048

_ROW = np.dtype(
    [
        ("temperature", "<f8"),
        ("top_p", "<f8"),
        ("min_p", "<f8"),
        ("uniform", "<f8"),
        ("top_k", "<i4"),
        ("unused", "<i4"),
    ]
)
_CHOSEN = np.dtype([("logprob", "<f8"), ("token_id", "<i4"), ("is_valid", "<i4")])


def takes(row: SamplingRow) -> bool:
    """Whether the kernel chooses such a row's token."""
    return row.rules is None and row.num_top == 0 and row.params.typical_p == 1.0


class Choices:
    """Tokens on their way from the device."""

    def __init__(self, on_host: Tensor, arrived: torch.cuda.Event) -> None:
        self._on_host, self._arrived = on_host, arrived

    def wait(self) -> list[ScoredToken]:
        """The tokens, once they are there."""
        self._arrived.synchronize()
        found = self._on_host.numpy().view(_CHOSEN)
        columns = (found["token_id"].tolist(), found["logprob"].tolist(), found["is_valid"].tolist())
        return [ScoredToken(token_id, logprob, bool(valid)) for token_id, logprob, valid in zip(*columns, strict=True)]


class TokenChooser:
    """Chooses the tokens of up to `max_rows` rows at a time.

    Attributes:
        token_ids: [max_rows] int32 on the device, the last choice's; the next step may read its tokens here.
    """

    def __init__(self, device: torch.device, max_rows: int) -> None:
        self.token_ids = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self._rows = torch.zeros(max_rows * _ROW.itemsize, dtype=torch.uint8, device=device)
        self._chosen = torch.zeros(max_rows * _CHOSEN.itemsize, dtype=torch.uint8, device=device)

    def choose(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Choices:
        """Queue the choice for each row of [R, V] fp16."""
        count = len(rows)
        staged = torch.empty(count * _ROW.itemsize, dtype=torch.uint8, pin_memory=True)
        columns = [_numbers(row) for row in rows]
        staged.numpy().view(_ROW)[:] = np.array(columns, dtype=_ROW)
        self._rows[: len(staged)].copy_(staged, non_blocking=True)
        self.launch(logits)
        on_host = torch.empty(count * _CHOSEN.itemsize, dtype=torch.uint8, pin_memory=True)
        on_host.copy_(self._chosen[: len(on_host)], non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch states no types here
        arrived.record()
        return Choices(on_host, arrived)

    def launch(self, logits: Tensor) -> None:
        """Queue the kernel alone, with the parameters of the rows chosen last; greedy at first."""
        count, vocab_size = logits.shape
        assert logits.dtype == torch.float16
        assert logits.is_contiguous()
        assert vocab_size % 8 == 0
        assert vocab_size <= MAX_VOCABULARY
        tensors = (logits, self._rows, self._chosen, self.token_ids)
        _load(logits.device.index).launch(
            (count, 1, 1),
            1024,
            (
                *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors),
                ctypes.c_int(vocab_size),
                ctypes.c_int(fraction_bits(vocab_size)),
            ),
            overlap=False,
        )


def _numbers(row: SamplingRow) -> tuple[float, float, float, float, int, int]:
    params = row.params
    return (params.temperature, params.top_p, params.min_p, row.uniform, params.top_k, 0)


@cache
def _load(device_index: int) -> Kernel:
    with torch.cuda.device(device_index):
        return load_kernels("choose.cu", {}, "", {"choose_tokens": _SHARED_BYTES})["choose_tokens"]
