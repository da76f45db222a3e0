"""The engine's own kernels against float32: fresh random inputs, outputs poisoned first, NaN never passes."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from worker.engine.kernels.attention import DecodeAttention
from worker.engine.kernels.choose import TokenChooser
from worker.engine.kernels.gemm import GemmWorkspace, PackedWeight, QuantizedGemm, pack
from worker.engine.kernels.rowwise import (
    add_rms_norm,
    embed,
    rotate_and_write,
)
from worker.engine.sampler import SamplingRow, sample
from worker.engine.sequence import SamplingParams
from worker.engine.weights import Int8Weight, Nf4Weight

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

CUDA = torch.device("cuda", 0)
BATCHES = [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 100, 128, 129, 200, 256, 300, 513, 1024]
# (N, K) of qkv, attention output, gate and up, down: 7B, then a 70B's qkv and down, then two odd ones
LAYERS = [
    (12288, 4096),
    (4096, 4096),
    (22016, 4096),
    (4096, 11008),
    (10240, 8192),
    (8192, 28672),
    (328, 192),
    (1000, 320),
]


@pytest.fixture(autouse=True)
def exact_float32() -> None:
    """References are float32 throughout."""
    torch.backends.cuda.matmul.allow_tf32 = False


def random_weight(bits: int, rows: int, columns: int, seed: int) -> Int8Weight | Nf4Weight:
    """A weight of about 1 / sqrt(columns), with every code there is."""
    generator = torch.Generator(CUDA).manual_seed(seed)
    if bits == 8:
        codes = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, device=CUDA, generator=generator)
        absmax = (torch.rand(rows, device=CUDA, generator=generator) + 0.5) * columns**-0.5
        return Int8Weight(codes, absmax)
    packed = torch.randint(0, 256, (rows * columns // 2,), dtype=torch.uint8, device=CUDA, generator=generator)
    absmax = (torch.rand(rows * columns // 64, device=CUDA, generator=generator) + 0.5) * columns**-0.5
    return Nf4Weight(packed, absmax, (rows, columns), 64)


def random_x(rows: int, columns: int, seed: int) -> Tensor:
    """[rows, columns] fp16."""
    return torch.randn(rows, columns, device=CUDA, generator=torch.Generator(CUDA).manual_seed(seed)).half()


def poisoned(*shape: int) -> Tensor:
    """fp16, every element NaN."""
    return torch.full(shape, math.nan, dtype=torch.float16, device=CUDA)


def relative_error(out: Tensor, reference: Tensor) -> float:
    """Norm of the difference over norm of the reference; NaN where out has one."""
    return float((out.double() - reference.double()).norm() / reference.double().norm())


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: f"{layer[0]}x{layer[1]}")
@pytest.mark.parametrize("bits", [8, 4])
def test_a_product_is_that_of_the_dequantized_weight(bits: int, layer: tuple[int, int]) -> None:
    """For every batch size, with and without overlap, twice with the same bits, and alone as among others."""
    weight = random_weight(bits, *layer, seed=layer[0] + bits)
    reference_weight = weight.dequantize(torch.float32)
    workspace = GemmWorkspace(CUDA)
    gemm = QuantizedGemm(pack(weight), workspace)
    for rows in BATCHES:
        x = random_x(rows, layer[1], seed=rows)
        first = gemm(x, poisoned(rows, layer[0]))
        second = gemm(x, poisoned(rows, layer[0]), overlap=True)
        reference = x.float() @ reference_weight.t()
        assert relative_error(first, reference) < 6e-4, f"{rows} rows"
        assert torch.equal(first, second), f"{rows} rows differ from run to run"
        if rows in (8, 16, 32, 64, 128):
            order = torch.randperm(rows, device=CUDA)
            among = gemm(x[order].contiguous(), poisoned(rows, layer[0]))
            assert torch.equal(among, first[order]), f"a row of {rows} depends on its place"
    workspace.check()


@pytest.mark.parametrize("shape", [(22016, 4096), (57344, 8192), (2 * 168, 128)], ids=str)
@pytest.mark.parametrize("bits", [8, 4])
def test_gate_and_up_are_multiplied_in_the_product(bits: int, shape: tuple[int, int]) -> None:
    """silu(gate) * up for every batch size."""
    weight = random_weight(bits, *shape, seed=5)
    reference_weight = weight.dequantize(torch.float32)
    workspace = GemmWorkspace(CUDA)
    gemm = QuantizedGemm(pack(weight, is_gate_up=True), workspace)
    for rows in BATCHES:
        x = random_x(rows, shape[1], seed=rows + 1)
        gate, up = (x.float() @ reference_weight.t()).chunk(2, dim=1)
        out = gemm(x, poisoned(rows, shape[0] // 2))
        assert relative_error(out, torch.nn.functional.silu(gate) * up) < 1e-3, f"{rows} rows"
    workspace.check()


def test_a_captured_product_replays() -> None:
    """In a graph, products that overlap give the bits they give alone, replay after replay."""
    workspace = GemmWorkspace(CUDA)
    gemms = [QuantizedGemm(pack(random_weight(bits, 4096, 4096, bits)), workspace) for bits in (8, 4, 8)]
    x = random_x(5, 4096, seed=1)
    expected = x
    outputs = [poisoned(5, 4096) for _ in gemms]
    for gemm in gemms:
        expected = gemm(expected, poisoned(5, 4096))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        current = x
        for gemm, out in zip(gemms, outputs, strict=True):
            current = gemm(current, out, overlap=True)
    for _ in range(20):
        outputs[-1].fill_(math.nan)
        graph.replay()
        assert torch.equal(outputs[-1], expected)
    workspace.check()


def rotary_tables(positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [positions, 64]."""
    angles = torch.outer(torch.arange(positions).float(), 10000.0 ** (-torch.arange(64) / 64))
    return angles.cos().to(CUDA), angles.sin().to(CUDA)


def rotated(heads: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[B, heads, 128] float32 rotated by position."""
    first, second = heads.float().chunk(2, dim=-1)
    c, s = cos[positions.long()][:, None], sin[positions.long()][:, None]
    return torch.cat([first * c - second * s, second * c + first * s], dim=-1)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(32, 32), (64, 8), (40, 40), (8, 2)])
def test_decode_attention_is_softmax_over_the_cache(num_heads: int, num_kv_heads: int, fused: bool) -> None:
    """With the new position written, whatever lies in the rest of the blocks; rows at -1 are left alone."""
    generator = torch.Generator(CUDA).manual_seed(num_heads)
    positions = torch.tensor([0, 1, 62, 63, 64, 127, 128, 129, 191, 255, 256, 1000, 2047, -1, 15, 16], device=CUDA)
    positions = positions.int()
    rows, max_blocks, width = len(positions), 32, num_heads + 2 * num_kv_heads
    tables = torch.randperm(rows * max_blocks, device=CUDA, generator=generator).int().view(rows, max_blocks)
    cache_shape = (rows * max_blocks, 64, num_kv_heads, 128)
    keys, values = (torch.randn(cache_shape, device=CUDA, generator=generator).half() for _ in range(2))
    for row, position in enumerate(positions.tolist()):  # what lies past the end must not matter
        tail = tables[row, (position + 63) // 64 :].long() if position >= 0 else tables[row].long()
        keys[tail], values[tail] = math.nan, math.nan
    qkv = torch.randn(rows, width * 128, device=CUDA, generator=generator).half()
    cos, sin = rotary_tables(2048)
    attend = DecodeAttention(num_heads, num_kv_heads, rows, 2048, cos, sin)
    out = poisoned(rows, num_heads * 128)
    if fused:
        attend(qkv, keys, values, positions, tables, out, max_context=2048)
    else:
        queries = poisoned(rows, num_heads * 128)
        at = positions.long().clamp(min=0)
        slots = tables[torch.arange(rows, device=CUDA), at // 64].long() * 64 + at % 64
        rotate_and_write(qkv, queries, keys, values, positions, slots, cos, sin)
        attend(queries, keys, values, positions, tables, out, max_context=2048, writes_cache=False)
    torch.cuda.synchronize()
    for row, position in enumerate(positions.tolist()):
        if position < 0:
            assert out[row].isnan().all()
            continue
        query, key, value = torch.split(qkv[row].view(width, 128), [num_heads, num_kv_heads, num_kv_heads])
        at = positions[row : row + 1]
        past = tables[row].long()
        all_keys, all_values = (cache[past].flatten(0, 1)[: position + 1].float() for cache in (keys, values))
        assert torch.equal(all_values[-1].half(), value)
        assert relative_error(all_keys[-1], rotated(key[None], at, cos, sin)[0]) < 4e-4
        q = rotated(query[None], at, cos, sin)[0]
        spread = [cache.repeat_interleave(num_heads // num_kv_heads, dim=1) for cache in (all_keys, all_values)]
        weights = torch.einsum("hd,shd->hs", q, spread[0]).div(128**0.5).softmax(dim=-1)
        reference = torch.einsum("hs,shd->hd", weights, spread[1]).flatten()
        assert relative_error(out[row], reference) < 2e-3, f"position {position}"
    again = poisoned(rows, num_heads * 128)
    if fused:
        attend(qkv, keys, values, positions, tables, again, max_context=2048)
        sound = positions >= 0
        assert torch.equal(out[sound], again[sound])
        alone = poisoned(1, num_heads * 128)
        attend(qkv[11:12], keys, values, positions[11:12], tables[11:12], alone, max_context=1024)
        assert torch.equal(alone[0], out[11])


@pytest.mark.parametrize("hidden", [4096, 5120, 8192, 256])
def test_add_and_norm(hidden: int) -> None:
    """The residual in place, and its RMSNorm; without a delta the residual stays as it was."""
    residual = torch.randn(7, hidden, device=CUDA)
    delta, weight = torch.randn(7, hidden, device=CUDA).half(), torch.rand(hidden, device=CUDA)
    for addend in (delta, None):
        expected = residual.clone() if addend is None else residual + addend.float()
        out = add_rms_norm(residual, addend, weight, 1e-5, poisoned(7, hidden))
        reference = expected * torch.rsqrt(expected.square().mean(-1, keepdim=True) + 1e-5) * weight
        assert torch.equal(residual, expected)
        assert relative_error(out, reference) < 4e-4


def random_row(rng: random.Random) -> SamplingRow:
    """Greedy or drawn, with any filter that the kernel takes."""
    params = SamplingParams(
        temperature=rng.choice([0.0, 0.3, 1.0, 1.7, 100.0, 5e-324]),
        top_k=rng.choice([0, 1, 2, 40, 1000]),
        top_p=rng.choice([1.0, 0.0, 0.5, 0.9, 0.999]),
        seed=0,
        min_p=rng.choice([0.0, 0.0, 0.05, 1.0]),
    )
    return SamplingRow(params, rng.choice([0.0, 1 - 2**-53, rng.random(), rng.random(), rng.random()]))


@pytest.mark.parametrize("vocab_size", [32000, 32016, 64, 65536])
def test_the_chosen_tokens_are_the_samplers(vocab_size: int) -> None:
    """For every mix of filters, with many equal logits, and for rows that are not sound; alone as among others."""
    rng = random.Random(vocab_size)
    rows = [random_row(rng) for _ in range(200)]
    logits = (torch.randn(200, vocab_size, device=CUDA) * 3).half()
    logits[::3] = (logits[::3] * 2).round() / 2  # ties
    logits[::4, vocab_size // 3 :: 2] = -math.inf
    logits[1, vocab_size // 2 :] = logits[1].max()
    logits[2] = -math.inf
    logits[3, 5] = math.nan
    logits[4, 7] = math.inf
    logits[5, 1:] = -math.inf
    logits[6] = -0.0
    logits[6, 9] = 0.0
    chooser = TokenChooser(CUDA, 200)
    found = chooser.choose(logits, rows).wait()
    expected = sample(logits.cpu().float(), rows)
    assert [each.is_valid for each in found] == [each.is_valid for each in expected]
    assert not all(each.is_valid for each in found[:5])
    for row, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if theirs.is_valid:
            assert ours.token_id == theirs.token_id, f"{row}: {rows[row]}"
            assert abs(ours.logprob - theirs.logprob) < 1e-9
    assert chooser.token_ids.tolist()[6:] == [each.token_id for each in found[6:]]
    for row in (7, 100, 199):
        assert chooser.choose(logits[row : row + 1], rows[row : row + 1]).wait() == [found[row]]


def test_embedding_rows_by_value_and_by_number() -> None:
    """A token below 0 names one that was chosen last."""
    table = torch.randn(50, 512, device=CUDA).half()
    ids, chosen = torch.tensor([3, -2, 49, -1], device=CUDA).int(), torch.tensor([7, 11], device=CUDA).int()
    out = torch.full((4, 512), math.nan, device=CUDA)
    embed(ids, chosen, table, out)
    assert torch.equal(out, table[torch.tensor([3, 11, 49, 7], device=CUDA)].float())


def test_a_weight_on_the_gpu_takes_no_more_than_its_bytes() -> None:
    """Packing adds nothing but the padding to whole units."""
    int8: PackedWeight = pack(random_weight(8, 4096, 11008, 1))
    nf4: PackedWeight = pack(random_weight(4, 4096, 11008, 1))
    assert int8.units.nbytes + int8.row_scale.nbytes == 4096 * 11008 + 4 * 4096
    assert nf4.units.nbytes == 4096 * 11008 // 2 + 4096 * 11008 // 64 * 4
