"""The order of weight bytes that the product's kernel reads: bitsandbytes' own bytes, moved, none changed in value.

A unit is 128 outputs x 128 inputs; units lie tile of outputs by tile, in a tile from the first inputs on. Inside a
unit come the eight groups of 16 rows in turn, and in each the 16 bytes of every lane of a warp, in the order in which
wgmma's operand A wants them in registers (PTX ISA, "Register fragments for wgmma.mma_async.m64k16"), so that a warp
reads 512 bytes in a row. The same bytes of int8 are operand A of m64k32, if the activations, int8 then, come in their
order (round_rows.cu). NF4 units end with their absmax: two blocks of 64 inputs, 128 rows each.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

UNIT_ROWS = 128
UNIT_COLUMNS = 128
INT8_UNIT_BYTES = UNIT_ROWS * UNIT_COLUMNS
NF4_UNIT_BYTES = INT8_UNIT_BYTES // 2 + UNIT_ROWS * 2 * 4


def pack_int8(codes: Tensor) -> Tensor:
    """[N, K] int8 to [units, INT8_UNIT_BYTES] uint8. Stored as code + 128; padded with zeros to whole units."""
    biased = _pad(codes.view(torch.uint8) ^ 0x80, UNIT_COLUMNS, 0x80)
    tiles, chunks = biased.shape[0] // UNIT_ROWS, biased.shape[1] // UNIT_COLUMNS
    # rows: tile, 16-row group, half, g; columns: chunk, 32-input step pair, step, half, t, neighbour
    parts = biased.view(tiles, 8, 2, 8, chunks, 4, 2, 2, 4, 2)
    return parts.permute(0, 4, 1, 5, 3, 8, 6, 2, 7, 9).reshape(tiles * chunks, INT8_UNIT_BYTES)


def pack_nf4(packed: Tensor, absmax: Tensor) -> Tensor:
    """[N, K/2] uint8 and [N, K/64] float32 to [units, NF4_UNIT_BYTES] uint8; padded with absmax 0 to whole units."""
    codes = _pad(packed, UNIT_COLUMNS // 2, 0x77)
    scales = _pad(absmax, UNIT_COLUMNS // 64, 0)
    tiles, chunks = codes.shape[0] // UNIT_ROWS, codes.shape[1] // (UNIT_COLUMNS // 2)
    # rows: tile, 16-row group, half, g; columns: chunk, block of 64, step, half, t
    parts = codes.view(tiles, 8, 2, 8, chunks, 2, 4, 2, 4)
    ordered = parts.permute(0, 4, 1, 5, 3, 8, 6, 7, 2).reshape(tiles * chunks, -1)
    blocks = scales.view(tiles, UNIT_ROWS, chunks, 2).permute(0, 2, 3, 1).reshape(tiles * chunks, -1)
    return torch.cat([ordered, blocks.contiguous().view(torch.uint8)], dim=1)


def pair_rows(rows: Tensor) -> Tensor:
    """Rows [gate; up] of any matrix, re-ordered so that 8 of the gate and the same 8 of up alternate."""
    half = rows.shape[0] // 2
    gate, up = (F.pad(part, _row_padding(part, 64)) for part in (rows[:half], rows[half:]))
    shape = (-1, 8, *rows.shape[1:])
    return torch.stack([gate.reshape(shape), up.reshape(shape)], dim=1).flatten(0, 2)


def _pad(matrix: Tensor, columns: int, value: int) -> Tensor:
    """To whole units of `columns` columns."""
    right, below = -matrix.shape[1] % columns, -matrix.shape[0] % UNIT_ROWS
    return F.pad(matrix, (0, right, 0, below), value=value) if right or below else matrix


def _row_padding(matrix: Tensor, multiple: int) -> tuple[int, ...]:
    return (0, 0) * (matrix.ndim - 1) + (0, -matrix.shape[0] % multiple)
