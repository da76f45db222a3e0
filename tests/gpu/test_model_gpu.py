"""The CUDA path: transformers' ids up to ties of float16, for each storage format, and a model of 7B's shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.engine.oracle import (
    GROUPED,
    MULTI_HEAD,
    Shape,
    block_tables,
    dequantized,
    greedy,
    oracle_greedy,
    random_llama,
    random_prompts,
    save,
)
from worker.engine.batch import SequenceSlice
from worker.engine.config import LlamaConfig, Quantization
from worker.engine.loader import build_model, load_model, load_weights
from worker.engine.model import LlamaModel
from worker.engine.quantize import quantize_int8, quantize_nf4
from worker.engine.weights import DenseWeight, LinearWeight

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
FORMATS = [Quantization.NONE, Quantization.INT8, Quantization.NF4, Quantization.NF4_DQ]
LENGTHS = [3, 16, 37, 130] * 16
NUM_NEW = 64
TIE_GAP = 2e-2  # of the range of the logits: what float16 activations may turn round


@pytest.fixture(scope="module", params=[MULTI_HEAD, GROUPED], ids=lambda shape: shape.name)
def shape(request: pytest.FixtureRequest) -> Shape:
    """Multi-head and grouped-query attention."""
    found: Shape = request.param
    return found


@pytest.fixture(scope="module")
def folder(shape: Shape, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unquantized float16 folder."""
    return save(random_llama(shape, seed=1), tmp_path_factory.mktemp("half"), torch.float16)


@pytest.mark.parametrize("quantization", FORMATS)
def test_the_ids_are_those_of_the_dequantized_weights(folder: Path, shape: Shape, quantization: Quantization) -> None:
    """At each of 64 x 64 tokens, given the oracle's tokens so far: the same best id, but for ties, in 2 % at most."""
    from transformers import LlamaForCausalLM

    oracle = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if quantization is not Quantization.NONE:
        oracle = dequantized(oracle, quantization.value)
    prompts = random_prompts(shape.vocab_size, LENGTHS, seed=4)
    theirs = oracle_greedy(oracle, prompts, NUM_NEW)

    model = load_model(folder, quantization, CUDA, kv_blocks=300, block_size=64)
    ours = greedy(model, prompts, NUM_NEW, forced=theirs.token_ids)

    best = theirs.logits.topk(2).values
    spread = theirs.logits.amax(-1) - theirs.logits.amin(-1)
    is_tie = best[..., 0] - best[..., 1] < TIE_GAP * spread
    differs = ours.token_ids != theirs.token_ids
    error = float((ours.logits - theirs.logits).norm() / theirs.logits.norm())
    print(f"{shape.name} {quantization.value}: logits err {error:.2e}, ids differ {float(differs.float().mean()):.2%}")
    assert not (differs & ~is_tie).any()
    assert float(differs.float().mean()) <= 0.02
    assert error < 2e-2


@pytest.mark.parametrize("quantization", FORMATS)
def test_a_chunked_prompt_in_company_gives_the_logits_of_a_whole_one(
    folder: Path, shape: Shape, quantization: Quantization
) -> None:
    """Up to float16; and NaN left in blocks by others never shows."""
    model = load_model(folder, quantization, CUDA, kv_blocks=64, block_size=64)
    prompt, other = random_prompts(shape.vocab_size, [200, 90], seed=5)
    whole = model.forward([SequenceSlice(prompt, 0, [0, 1, 2, 3], True)])[0]
    for cache in (*model.kv.keys, *model.kv.values):
        cache.fill_(torch.nan)

    for start, end in ((0, 70), (70, 128), (128, 199)):
        model.forward(
            [SequenceSlice(other, 0, [9, 7], False), SequenceSlice(prompt[start:end], start, [8, 5, 6, 4], False)]
        )
    decoded = model.forward(
        [SequenceSlice([1], 90, [9, 7], True), SequenceSlice(prompt[199:], 199, [8, 5, 6, 4], True)]
    )[1]

    assert float((decoded - whole).norm() / whole.norm()) < 1e-2


def test_a_broken_sequence_breaks_no_other(folder: Path, shape: Shape) -> None:
    """NaN in one sequence's cache stays in its own logits, in decode and in prefill."""
    model = load_model(folder, Quantization.INT8, CUDA, kv_blocks=64, block_size=64)
    prompts = random_prompts(shape.vocab_size, [150, 20, 70], seed=6)
    tables = block_tables(model, [200, 100, 100])
    model.forward([SequenceSlice(prompt, 0, table, False) for prompt, table in zip(prompts, tables, strict=True)])
    for cache in (*model.kv.keys, *model.kv.values):
        cache[tables[0][0]] = torch.nan

    logits = model.forward(
        [
            SequenceSlice([1] * new, len(prompt), table, True)
            for new, prompt, table in zip((1, 1, 5), prompts, tables, strict=True)
        ]
    )

    assert logits[0].isnan().all()
    assert logits[1:].isfinite().all()


class RandomSource:
    """Weights of a model that nobody trained, made on the GPU, stored as `quantization` says."""

    def __init__(self, config: LlamaConfig, quantization: Quantization) -> None:
        self._config = config
        self._quantization = quantization
        self._generator = torch.Generator(device=CUDA).manual_seed(0)

    def vector(self, name: str) -> Tensor:
        """A norm that changes nothing."""
        return torch.ones(self._config.hidden_size, device=CUDA)

    def matrix(self, name: str) -> Tensor:
        """The embedding or the lm_head."""
        return self._normal(self._config.vocab_size, self._config.hidden_size)

    def linear(self, module: str, shape: tuple[int, int]) -> LinearWeight:
        """One decoder linear."""
        values = self._normal(*shape)
        match self._quantization:
            case Quantization.INT8:
                return quantize_int8(values)
            case Quantization.NF4 | Quantization.NF4_DQ:
                return quantize_nf4(values, double=self._quantization is Quantization.NF4_DQ)
            case _:
                return DenseWeight(values)

    def _normal(self, rows: int, columns: int) -> Tensor:
        values = torch.randn(rows, columns, device=CUDA, dtype=torch.float16, generator=self._generator)
        return values.mul_(columns**-0.5)


def llama_7b(quantization: Quantization) -> LlamaModel:
    """Llama 2 7B's shape."""
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        vocab_size=32000,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        dtype="float16",
        saved_quantization=Quantization.NONE,
    )
    weights = load_weights(RandomSource(config, quantization), config, 0, lambda _: None)
    return build_model(config, weights, kv_blocks=160, kv_bytes=None, block_size=64)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("quantization", "max_gib"),
    [(Quantization.NONE, 13), (Quantization.INT8, 7), (Quantization.NF4, 4.2), (Quantization.NF4_DQ, 4.2)],
)
def test_a_model_of_7b_shape_runs(quantization: Quantization, max_gib: float) -> None:
    """Its weights take the bytes of their format, and a prompt and a decode step of 32 give finite, equal logits."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = llama_7b(quantization)
    kv_bytes = sum(cache.nbytes for cache in (*model.kv.keys, *model.kv.values))
    weights_gib = (torch.cuda.memory_allocated() - before - kv_bytes) / 2**30
    prompt = random_prompts(32000, [257], seed=7)[0]
    tables = [[5 * row + column for column in range(5)] for row in range(32)]

    whole = model.forward([SequenceSlice(prompt, 0, tables[0], True)])[0]
    for table in tables:
        model.forward([SequenceSlice(prompt[:256], 0, table, False)])
    decoded = model.forward([SequenceSlice(prompt[256:], 256, table, True) for table in tables])

    assert weights_gib < max_gib
    assert decoded.isfinite().all()
    assert float((decoded - whole).norm(dim=1).max() / whole.norm()) < 2e-2
