"""The order of packed weights: every byte stands where the fragments of wgmma's operand A want it, and none is lost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.engine.rounded import ordered
from worker.engine.kernels.repack import INT8_UNIT_BYTES, NF4_UNIT_BYTES, pack_int8, pack_nf4, pair_rows

SHAPES = [(128, 128), (256, 384), (200, 192)]


def fragment_element(lane: int, register: int, half: int) -> tuple[int, int]:
    """Row and input of one fp16 in a 16 x 16 fragment of operand A (PTX ISA, wgmma m64k16, one warp's rows)."""
    return lane // 4 + 8 * (register % 2), lane % 4 * 2 + half + 8 * (register // 2)


def unpack_int8(units: Tensor, rows: int, columns: int) -> Tensor:
    """[rows, columns] int8, read lane by lane as gemm.cu reads it."""
    chunks = -(-columns // 128)
    out = torch.zeros(-(-rows // 128) * 128, chunks * 128, dtype=torch.int16)
    # tile, chunk, 16 rows, quarter, lane, word, byte
    words = units.view(-1, chunks, 8, 4, 32, 4, 4).to(torch.int16) - 128
    for lane in range(32):
        for step in range(2):
            for register in range(4):
                for half in range(2):
                    row, k = fragment_element(lane, register, half)
                    byte = words[:, :, :, :, lane, step * 2 + register % 2, register // 2 * 2 + half]
                    for group in range(8):
                        for quarter in range(4):
                            column = quarter * 32 + step * 16 + k
                            target = out.view(-1, 128, chunks, 128)[:, group * 16 + row, :, column]
                            target.copy_(byte[:, :, group, quarter])
    return out[:rows, :columns].to(torch.int8)


def int8_fragment_element(lane: int, register: int, byte: int) -> tuple[int, int]:
    """Row and input of one int8 in a 16 x 32 fragment of operand A (PTX ISA, wgmma m64k32, one warp's rows)."""
    return lane // 4 + 8 * (register % 2), lane % 4 * 4 + byte + 16 * (register // 2)


def int8_operand(units: Tensor, rows: int) -> Tensor:
    """[rows, columns, padded] int8: the matrix that wgmma m64k32 sees in the bytes that gemm_wide.cu gives it."""
    chunks = len(units) // -(-rows // 128)
    seen = torch.full((len(units) // chunks, 8, 16, chunks, 4, 32), -99, dtype=torch.int8)
    # tile, chunk, 16 rows, quarter, lane, register, byte
    words = (units ^ 0x80).view(torch.int8).view(-1, chunks, 8, 4, 32, 4, 4)
    for lane in range(32):
        for register in range(4):
            for byte in range(4):
                row, k = int8_fragment_element(lane, register, byte)
                seen[:, :, row, :, :, k] = words[:, :, :, :, lane, register, byte].permute(0, 2, 1, 3)
    return seen.view(-1, chunks * 128)[:rows]


def unpack_nf4(units: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """[rows, columns] uint8 codes and [rows, columns / 64] absmax, read lane by lane as gemm.cu reads them."""
    chunks = -(-columns // 128)
    codes = torch.zeros(-(-rows // 128) * 128, chunks * 128, dtype=torch.uint8)
    words = units[:, :8192].reshape(-1, chunks, 8, 2, 32, 4, 4)  # tile, chunk, 16 rows, block, lane, step, register
    for lane in range(32):
        for step in range(4):
            for register in range(4):
                byte = words[:, :, :, :, lane, step, register]
                for half, code in enumerate((byte >> 4, byte & 15)):
                    row, k = fragment_element(lane, register, half)
                    for group in range(8):
                        for block in range(2):
                            column = block * 64 + step * 16 + k
                            target = codes.view(-1, 128, chunks, 128)[:, group * 16 + row, :, column]
                            target.copy_(code[:, :, group, block])
    absmax = units[:, 8192:].contiguous().view(torch.float32).view(-1, chunks, 2, 128).permute(0, 3, 1, 2)
    return codes[:rows, :columns], absmax.reshape(-1, chunks * 2)[:rows, : columns // 64]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_lies_in_fragment_order(shape: tuple[int, int]) -> None:
    """Read back by the instruction's own table it is the matrix; the rest of the last units is zero."""
    codes = torch.randint(-128, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    units = pack_int8(codes)
    assert units.shape == (-(-shape[0] // 128) * -(-shape[1] // 128), INT8_UNIT_BYTES)
    assert torch.equal(unpack_int8(units, *shape), codes)
    assert int((units != 128).sum()) == int((codes != 0).sum())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packed_int8_is_operand_a_of_8_bits_for_activations_in_its_order(shape: tuple[int, int]) -> None:
    """The same bytes, read by the table of another instruction: the product of whole numbers, to the last one."""
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)
    x = torch.randint(-127, 128, (5, shape[1]), dtype=torch.int8, generator=generator)
    operand = int8_operand(pack_int8(codes), shape[0])
    meets = torch.nn.functional.pad(ordered(x), (0, operand.shape[1] - shape[1]))  # the copy engine reads zeros there
    assert torch.equal(operand[:, : shape[1]], ordered(codes))
    assert torch.equal(meets.long() @ operand.long().t(), x.long() @ codes.long().t())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nf4_lies_in_fragment_order(shape: tuple[int, int]) -> None:
    """Codes and absmax both; padding has absmax zero, so it stands for zero."""
    generator = torch.Generator().manual_seed(2)
    packed = torch.randint(0, 256, (shape[0], shape[1] // 2), dtype=torch.uint8, generator=generator)
    absmax = torch.rand(shape[0], shape[1] // 64, generator=generator) + 0.1
    units = pack_nf4(packed, absmax)
    codes, scales = unpack_nf4(units, *shape)
    assert units.shape[1] == NF4_UNIT_BYTES
    assert torch.equal(codes[:, 0::2] << 4 | codes[:, 1::2], packed)
    assert torch.equal(scales, absmax)
    assert int((units[:, 8192:].contiguous().view(torch.float32) != 0).sum()) == absmax.numel()


def test_gate_and_up_alternate_by_eight_rows() -> None:
    """Row g of a fragment is of the gate and row g + 8 the same row of up; halves are padded to 64 rows."""
    rows = torch.arange(1, 145)[:, None].float()
    paired = pair_rows(rows)
    assert paired.shape == (256, 1)
    assert paired[:16, 0].tolist() == [*range(1, 9), *range(73, 81)]
    assert paired[128:144, 0].tolist() == [*range(65, 73), *range(137, 145)]
    assert not paired[144:].any()
