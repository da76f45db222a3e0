"""Models that nobody trained, of a named shape, made on the device that is measured; no checkpoint, no disk."""

from __future__ import annotations

import gc
import logging

import torch
from torch import Tensor

from bench.make_model import SHAPES, VOCABULARY
from worker.engine.config import ActivationFormat, KVFormat, LlamaConfig, Quantization
from worker.engine.detokenizer import TokenPieces
from worker.engine.engine import Engine, EngineSettings
from worker.engine.hopper_model import HopperModel
from worker.engine.hopper_weights import hopper_takes
from worker.engine.kernels.attention import BLOCK_SIZE
from worker.engine.kv_tensors import kv_class
from worker.engine.loader import build_model, load_hopper_model, load_weights
from worker.engine.model import LlamaModel
from worker.engine.operators import PLAIN, choose_operators
from worker.engine.sequence import GenerationRequest, SamplingParams, StoppingParams
from worker.engine.weights import Int8Weight, LinearWeight, Nf4Weight

KERNELS = ("hopper", "triton", "torch")
GREEDY = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, seed=0)
CPU_RESIDENT_BYTES = 2 << 30
CPU_BLOCKS = 1 << 14
SPARE_BYTES = 2 << 30  # of GPU memory, for activations and what loading leaves


class RandomSource:
    """Weights in the storage format: random bytes."""

    def __init__(self, config: LlamaConfig, quantization: Quantization, device: torch.device) -> None:
        self._config = config
        self._bits = 8 if quantization is Quantization.INT8 else 4
        self._device = device
        torch.manual_seed(0)

    def vector(self, name: str) -> Tensor:
        """A norm that only scales."""
        return torch.ones(self._config.hidden_size, device=self._device)

    def matrix(self, name: str) -> Tensor:
        """The embedding or the head."""
        shape = (self._config.vocab_size, self._config.hidden_size)
        return torch.randn(shape, device=self._device).mul_(self._config.hidden_size**-0.5).half()

    def linear(self, module: str, shape: tuple[int, int]) -> LinearWeight:
        """A decoder's linear layer."""
        return random_weight(self._bits, *shape, self._device)


def random_weight(bits: int, rows: int, columns: int, device: torch.device) -> Int8Weight | Nf4Weight:
    """Random bytes of a layer."""
    if bits == 8:
        codes = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, device=device)
        return Int8Weight(codes, (torch.rand(rows, device=device) + 0.5) * columns**-0.5)
    packed = torch.randint(0, 256, (rows * columns // 2,), dtype=torch.uint8, device=device)
    absmax = (torch.rand(rows * columns // 64, device=device) + 0.5) * columns**-0.5
    return Nf4Weight(packed, absmax, (rows, columns), 64)


def config_of(shape: str) -> LlamaConfig:
    """The configuration of a named shape."""
    size = SHAPES[shape]
    return LlamaConfig(
        hidden_size=size["hidden_size"],
        intermediate_size=size["intermediate_size"],
        num_layers=size["layers"],
        num_heads=size["heads"],
        num_kv_heads=size["kv_heads"],
        head_dim=size["hidden_size"] // size["heads"],
        vocab_size=VOCABULARY,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        dtype="float16",
        saved_quantization=Quantization.NONE,
    )


def make_model(
    config: LlamaConfig,
    quantization: Quantization,
    kv_blocks: int,
    device: torch.device,
    kernels: str = "",
    fixed_rows: int = 0,
    prefill_activations: ActivationFormat = ActivationFormat.FLOAT,
    kv_format: KVFormat = KVFormat.FLOAT,
) -> HopperModel | LlamaModel:
    """As a worker would load it.

    Args:
        kv_blocks: of BLOCK_SIZE positions.
        kernels: one of KERNELS, '' for what a worker takes on this device. Raises ValueError if they do not run here.
        fixed_rows: see HopperModel.
        prefill_activations: see HopperModel. Raises ValueError if its kernels do not run here.
    """
    source = RandomSource(config, quantization, device)
    if kernels in ("", "hopper") and hopper_takes(config, quantization, device):
        return load_hopper_model(
            source,
            config,
            kv_blocks=kv_blocks,
            kv_bytes=None,
            progress=lambda _: None,
            fixed_rows=fixed_rows,
            prefill_activations=prefill_activations,
            kv_format=kv_format,
        )
    if prefill_activations is not ActivationFormat.FLOAT:
        raise ValueError(f"no {prefill_activations.value} activations on {device}")
    operators = PLAIN
    if kernels != "torch":
        operators = choose_operators(config, quantization, kv_format, device, BLOCK_SIZE)
    if kernels not in ("", operators.name):
        raise ValueError(f"no {kernels} kernels on {device}")
    weights = load_weights(source, config, CPU_RESIDENT_BYTES, lambda _: None, operators)
    return build_model(
        config,
        weights,
        kv_blocks=kv_blocks,
        kv_bytes=None,
        block_size=BLOCK_SIZE,
        operators=operators,
        kv_format=kv_format,
    )


def make_engine(model: HopperModel | LlamaModel, settings: EngineSettings) -> Engine:
    """As a worker makes it."""
    pieces = TokenPieces(tuple(b" w%d" % number for number in range(VOCABULARY)), frozenset())
    return Engine(model, pieces, settings)


def request(number: int, prompt: int, new: int) -> GenerationRequest:
    """A greedy request that ends by its length."""
    prompt_ids = torch.randint(3, VOCABULARY, (prompt,), generator=torch.Generator().manual_seed(number)).tolist()
    stopping = StoppingParams(new, stop_strings=(), eos_token_ids=(), ignore_eos=True)
    return GenerationRequest(f"g{number}", tuple(prompt_ids), GREEDY, stopping)


def weight_bytes(config: LlamaConfig, quantization: Quantization) -> int:
    """Bytes of weights that a decode step reads, each once: layers as stored, norms, the float16 head."""
    hidden, wide = config.hidden_size, config.intermediate_size
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    layers = ((heads, hidden), (hidden, config.num_heads * config.head_dim), (2 * wide, hidden), (hidden, wide))
    stored = 0
    for rows, columns in layers:
        is_int8 = quantization is Quantization.INT8
        stored += rows * columns + 4 * rows if is_int8 else rows * columns // 2 + rows * columns // 64 * 4
    norms = 4 * hidden * (2 * config.num_layers + 1)
    return config.num_layers * stored + norms + 2 * config.vocab_size * hidden


def kv_bytes(config: LlamaConfig, kv_format: KVFormat, num_positions: int) -> int:
    """Bytes of their keys and values on a GPU, scales included."""
    return kv_class(kv_format).bytes_per_block(config, num_positions, torch.float16)


def free_blocks(
    config: LlamaConfig, quantization: Quantization, device: torch.device, kv_format: KVFormat = KVFormat.FLOAT
) -> int:
    """Blocks of KV cache that fit beside the weights."""
    if device.type != "cuda":
        return CPU_BLOCKS
    forget_models()
    embedding = 2 * config.vocab_size * config.hidden_size
    left = torch.cuda.mem_get_info(device)[0] - weight_bytes(config, quantization) - embedding - SPARE_BYTES
    return max(0, left // kv_bytes(config, kv_format, BLOCK_SIZE))


def forget_models() -> None:
    """Give back the GPU memory of models that nobody refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def log_to_stderr() -> None:
    """What the loader has to say, of kernels that do not run above all."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
