"""Prefill with activations in int8, on the int8 tensor cores: rounding and products to the bit, logits by error."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.engine.oracle import block_tables, random_prompts
from tests.engine.random_source import RandomSource
from tests.engine.rounded import ordered, rounded
from worker.engine.batch import SequenceSlice
from worker.engine.config import ActivationFormat, LlamaConfig, Quantization
from worker.engine.hopper_model import HopperModel
from worker.engine.kernels.gemm import WIDE_ROWS, GemmWorkspace, PackedWeight, QuantizedGemm, pack
from worker.engine.kernels.round_rows import RoundedRows, round_rows
from worker.engine.loader import build_model, load_hopper_model, load_weights
from worker.engine.model import LlamaModel
from worker.engine.weights import Int8Weight

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
ALONE, IN_TEAMS = (1, 128, 257, 300), (129, 512, 1000)  # rows for which blocks share no weights, and for which two do
# (N, K) of 7B's, 13B's and 70B's layers, then two odd ones
LAYERS = [
    (12288, 4096),
    (4096, 4096),
    (4096, 11008),
    (15360, 5120),
    (5120, 13824),
    (10240, 8192),
    (8192, 28672),
    (328, 192),
    (1000, 320),
]
VOCAB, BLOCKS = 1000, 60
MAX_ERROR = 1e-2  # of a row's logits, relative, with float16 activations
MEAN_ROUNDED_ERROR, MAX_ROUNDED_ERROR = 6e-2, 0.1  # the same rounding on the CPU: 3.7e-2 and 5.4e-2


def seeded(seed: int) -> torch.Generator:
    """On the GPU."""
    return torch.Generator(CUDA).manual_seed(seed)


def random_weight(rows: int, columns: int) -> Int8Weight:
    """Every code there is, the smallest one too."""
    codes = torch.randint(-128, 128, (rows, columns), dtype=torch.int8, device=CUDA, generator=seeded(rows))
    return Int8Weight(codes, (torch.rand(rows, device=CUDA, generator=seeded(columns)) + 0.5) * columns**-0.5)


def random_codes(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """[rows, columns] int8 with every code that rounding gives, and a scale for each row."""
    codes = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, device=CUDA, generator=seeded(seed))
    return codes, (torch.rand(rows, device=CUDA, generator=seeded(seed + 1)) + 0.5) / 64


def in_room(codes: Tensor, scale: Tensor) -> RoundedRows:
    """As the kernel reads them; scales past the last row are NaN."""
    room = RoundedRows.empty(codes.shape[0], codes.shape[1], CUDA)
    room.scale.fill_(math.nan)
    room.scale[: len(scale)] = scale
    room.codes.copy_(ordered(codes))
    return room


def poisoned(*shape: int) -> Tensor:
    """fp16, every element NaN."""
    return torch.full(shape, math.nan, dtype=torch.float16, device=CUDA)


def exact_product(weight: PackedWeight, wide_codes: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """[M, N] float32: the sums in whole numbers, which float64 holds, times both scales in the kernel's order."""
    sums = codes.double() @ wide_codes.t()
    return sums.float() * weight.row_scale[: weight.shape[0]] * scale[:, None]


@pytest.mark.parametrize("columns", [64, 192, 4096, 5120, 11008, 13824, 28672])
def test_rows_are_rounded_as_torch_rounds_them(columns: int) -> None:
    """To the bit: of normal numbers, zeros, the smallest and the largest there are, and beside an outlier."""
    x = torch.randn(300, columns, device=CUDA, generator=seeded(columns)).half()
    x[1] = 0
    x[2] *= 1e-7
    x[3] *= 60000 / float(x[3].abs().max())
    x[4, columns - 1] = -1000
    x[5] = x[5].round()  # ties
    room = RoundedRows.empty(300, columns, CUDA)
    room.codes.fill_(99)
    room.scale.fill_(math.nan)
    round_rows(x, room)
    codes, scale = rounded(x)
    found = room.codes != ordered(codes)
    assert not found.any(), f"{int(found.sum())} codes differ, in rows {found.any(1).nonzero()[:9, 0].tolist()}"
    assert torch.equal(room.scale[:300], scale)
    assert int(room.codes.abs().amax()) == 127


def test_what_is_not_finite_stays_so_and_in_its_row() -> None:
    """The engine ends such a sequence by its logits; a row of finite numbers made of it would go unnoticed."""
    packed = pack(random_weight(512, 4096))
    gemm = QuantizedGemm(packed, GemmWorkspace(CUDA))
    x = torch.randn(300, 4096, device=CUDA, generator=seeded(1)).half()
    sound = gemm.multiply_rounded(round_rows(x, RoundedRows.empty(300, 4096, CUDA)), poisoned(300, 512))
    broken = {3: math.nan, 70: math.inf, 128: -math.inf, 299: math.nan}
    for row, value in broken.items():
        x[row, (row * 37) % 4096] = value
    room = round_rows(x, RoundedRows.empty(300, 4096, CUDA))
    out = gemm.multiply_rounded(room, poisoned(300, 512), overlap=True)
    is_broken = torch.tensor([row in broken for row in range(300)], device=CUDA)
    assert not room.scale[:300][is_broken].isfinite().any()
    assert not room.codes[is_broken].any()
    assert not out[is_broken].isfinite().any()
    assert torch.equal(out[~is_broken], sound[~is_broken])
    assert sound.isfinite().all()


def check_product(layer: tuple[int, int], numbers_of_rows: tuple[int, ...]) -> None:
    """To the bit, with and without overlap; a row's result is that of the row alone."""
    weight = random_weight(*layer)
    packed, wide_codes = pack(weight), weight.codes.double()
    workspace = GemmWorkspace(CUDA)
    gemm = QuantizedGemm(packed, workspace)
    for rows in numbers_of_rows:
        codes, scale = random_codes(rows, layer[1], seed=rows)
        room = in_room(codes, scale)
        expected = exact_product(packed, wide_codes, codes, scale).half()
        for overlap in (False, True):
            out = gemm.multiply_rounded(room, poisoned(rows, layer[0]), overlap=overlap)
            error = float((out.double() - expected.double()).abs().max())
            print(f"{layer}, {rows} rows: off by {error:.1e} at most, {int((out != expected).sum())} differ")
            assert torch.equal(out, expected), f"{rows} rows, off by {error}"
    alone = gemm.multiply_rounded(in_room(codes[5:9], scale[5:9]), poisoned(4, layer[0]))
    assert torch.equal(alone, out[5:9])
    workspace.check()


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: f"{layer[0]}x{layer[1]}")
def test_a_product_is_exact(layer: tuple[int, int]) -> None:
    """Of blocks that work alone."""
    check_product(layer, ALONE)


@pytest.mark.parametrize("codes", [(127, 127), (-127, -128)], ids=str)
def test_the_largest_sums_fit(codes: tuple[int, int]) -> None:
    """Of 70B's widest layer: 32 bits hold them."""
    weight = Int8Weight(torch.full((256, 28672), codes[1], dtype=torch.int8, device=CUDA), torch.ones(256, device=CUDA))
    packed = pack(weight)
    gemm = QuantizedGemm(packed, GemmWorkspace(CUDA))
    x, scale = torch.full((260, 28672), codes[0], dtype=torch.int8, device=CUDA), torch.full((260,), 1e-3, device=CUDA)
    expected = exact_product(packed, weight.codes.double(), x, scale).half()
    assert expected.isfinite().all()
    assert torch.equal(gemm.multiply_rounded(in_room(x, scale), poisoned(260, 256)), expected)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: f"{layer[0]}x{layer[1]}")
def test_a_product_of_teams_is_exact(layer: tuple[int, int]) -> None:
    """Two blocks fill each other's memory with weights."""
    check_product(layer, IN_TEAMS)


@pytest.mark.parametrize("shape", [(22016, 4096), (57344, 8192), (2 * 168, 192)], ids=str)
def test_gate_and_up_are_multiplied_in_the_product(shape: tuple[int, int]) -> None:
    """silu(gate) * up."""
    weight = random_weight(*shape)
    wide_codes, row_scale = weight.codes.double(), weight.row_absmax.double() / 127
    workspace = GemmWorkspace(CUDA)
    gemm = QuantizedGemm(pack(weight, is_gate_up=True), workspace)
    for rows in (*ALONE, *IN_TEAMS):
        codes, scale = random_codes(rows, shape[1], seed=rows)
        gate, up = ((codes.double() @ wide_codes.t()) * row_scale * scale.double()[:, None]).chunk(2, dim=1)
        expected = torch.nn.functional.silu(gate) * up
        first, second = (
            gemm.multiply_rounded(in_room(codes, scale), poisoned(rows, shape[0] // 2), overlap=overlap)
            for overlap in (False, True)
        )
        error = float((first.double() - expected).norm() / expected.norm())
        print(f"{shape}, {rows} rows: {error:.1e}")
        assert error < 5e-4
        assert torch.equal(first, second)
    workspace.check()


Models = tuple[HopperModel, HopperModel, LlamaModel]


@pytest.fixture(scope="module")
def models() -> Models:
    """With int8 activations and without, on the GPU; and the float32 oracle."""
    config = LlamaConfig(512, 1408, 3, 4, 2, 128, VOCAB, 1100, 1e-5, 10000.0, False, "float16", Quantization.NONE)
    on_gpu = [
        load_hopper_model(
            RandomSource(config, Quantization.INT8, CUDA, CPU),
            config,
            kv_blocks=BLOCKS,
            kv_bytes=None,
            progress=lambda _: None,
            prefill_activations=activations,
        )
        for activations in (ActivationFormat.INT8, ActivationFormat.FLOAT)
    ]
    weights = load_weights(RandomSource(config, Quantization.INT8, CPU, CPU), config, 2 << 30, lambda _: None)
    return on_gpu[0], on_gpu[1], build_model(config, weights, kv_blocks=BLOCKS, kv_bytes=None, block_size=64)


def errors(ours: Tensor, theirs: Tensor) -> Tensor:
    """Of each row, norm of the difference over norm of theirs."""
    assert ours.isfinite().all()
    ours, theirs = ours.cpu().double(), theirs.cpu().double()
    relative: Tensor = (ours - theirs).norm(dim=1) / theirs.norm(dim=1)
    return relative


def test_logits_of_prompts_are_off_by_what_rounding_takes(models: Models) -> None:
    """Against the float32 oracle, beside float16 activations."""
    tested = models[0]
    for length in (129, 200, 600):
        prompt = random_prompts(VOCAB, [length], seed=length)[0]
        step = [SequenceSlice(prompt, 0, block_tables(tested, [length])[0], False, wants_all_logits=True)]
        ours, floats, exact = (model.forward(step) for model in models)
        last = tested.forward([SequenceSlice(prompt, 0, step[0].block_table, True)])  # in a graph, if there is room
        rounded_error, float_error = errors(ours, exact), errors(floats, exact)
        others = int((ours.cpu().argmax(1) != exact.argmax(1)).sum())
        print(
            f"{length} tokens: int8 activations off by {rounded_error.mean():.1e}, {rounded_error.max():.1e} at most, "
            f"{others} best ids differ; float16 by {float_error.mean():.1e}, {float_error.max():.1e}"
        )
        assert float(float_error.max()) < MAX_ERROR
        assert float(rounded_error.mean()) < MEAN_ROUNDED_ERROR
        assert float(rounded_error.max()) < MAX_ROUNDED_ERROR
        assert float(errors(last, exact[-1:])) < MAX_ROUNDED_ERROR
        assert float(rounded_error.mean()) > 3 * float(float_error.mean()), "nothing was rounded"
        assert torch.equal(tested.forward(step), ours), "it differs from run to run"


def test_steps_of_few_tokens_stay_exact(models: Models) -> None:
    """Short prompts and decodes have the bits they have without the setting."""
    tested, exact_gpu, *_ = models
    prompt = random_prompts(VOCAB, [WIDE_ROWS], seed=9)[0]
    table = block_tables(tested, [WIDE_ROWS + 1])[0]
    for step in ([SequenceSlice(prompt, 0, table, True)], [SequenceSlice([7], WIDE_ROWS, table, True)]):
        assert torch.equal(tested.forward(step), exact_gpu.forward(step))


def test_a_broken_sequence_breaks_no_other(models: Models) -> None:
    """NaN in one sequence's cache stays in its own logits, in a prefill of several."""
    tested = models[0]
    prompts = random_prompts(VOCAB, [150, 70], seed=7)
    tables = block_tables(tested, [250, 170])
    tested.forward([SequenceSlice(prompt, 0, table, False) for prompt, table in zip(prompts, tables, strict=True)])
    for cache in (*tested.kv.keys, *tested.kv.values):
        cache[tables[0][0]] = torch.nan
    step = [SequenceSlice([5] * 90, len(prompt), table, True) for prompt, table in zip(prompts, tables, strict=True)]
    logits = tested.forward(step)
    assert logits[0].isnan().all()
    assert logits[1].isfinite().all()
