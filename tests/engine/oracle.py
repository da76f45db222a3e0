"""Random Llama folders, transformers as the oracle, and greedy generation by our own forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worker.engine.batch import ForwardModel, SequenceSlice


@dataclass(frozen=True, slots=True)
class Shape:
    """A small Llama; `num_kv_heads` below `num_heads` is grouped-query attention."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool = False


MULTI_HEAD = Shape("multi-head", 128, 320, 3, 4, 4, 32, 512)
GROUPED = Shape("grouped", 192, 448, 2, 8, 2, 32, 700, tied=True)
MAX_POSITIONS = 512


@dataclass(frozen=True, slots=True)
class GreedyRun:
    """What greedy decoding gave: `token_ids` [B, T] and the `logits` [B, T, V] each token was chosen from."""

    token_ids: Tensor
    logits: Tensor


def random_llama(shape: Shape, seed: int) -> Any:
    """A transformers LlamaForCausalLM in float32 whose logits spread widely, so that near-ties are rare."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=shape.tied,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
        rms_norm_eps=1e-5,
    )
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.uniform_(0.7, 1.3, generator=generator)
            else:
                scale = 1.0 if "embed" in name and not shape.tied else 1.5 * weight.shape[1] ** -0.5
                weight.normal_(0.0, scale, generator=generator)
        if not shape.tied:
            model.lm_head.weight.mul_(2)
        else:
            model.model.norm.weight.mul_(2)
    return model


def random_prompts(vocab_size: int, lengths: Sequence[int], seed: int) -> list[list[int]]:
    """One prompt of each length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, vocab_size, (length,), generator=generator).tolist() for length in lengths]


def oracle_greedy(model: Any, prompts: Sequence[Sequence[int]], num_new: int) -> GreedyRun:
    """transformers' generate, one batch for each prompt length, so that nothing is padded."""
    token_ids: list[Tensor | None] = [None] * len(prompts)
    logits: list[Tensor | None] = [None] * len(prompts)
    for length in sorted({len(prompt) for prompt in prompts}):
        members = [index for index, prompt in enumerate(prompts) if len(prompt) == length]
        batch = torch.tensor([prompts[index] for index in members], device=model.device)
        run = model.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            max_new_tokens=num_new,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        steps = torch.stack(run.logits, dim=1).float().cpu()
        for row, index in enumerate(members):
            token_ids[index] = run.sequences[row, length:].cpu()
            logits[index] = steps[row]
    return GreedyRun(
        torch.stack([ids for ids in token_ids if ids is not None]),
        torch.stack([rows for rows in logits if rows is not None]),
    )


def block_tables(model: ForwardModel, lengths: Sequence[int]) -> list[list[int]]:
    """Blocks for sequences of these lengths, dealt out in turn, so that no table is a run."""
    wanted = [-(-length // model.block_size) for length in lengths]
    assert sum(wanted) <= model.num_blocks
    tables: list[list[int]] = [[] for _ in lengths]
    block = model.num_blocks
    while any(len(table) < want for table, want in zip(tables, wanted, strict=True)):
        for table, want in zip(tables, wanted, strict=True):
            if len(table) < want:
                block -= 1
                table.append(block)
    return tables


def greedy(
    model: ForwardModel, prompts: Sequence[Sequence[int]], num_new: int, forced: Tensor | None = None
) -> GreedyRun:
    """Our own greedy generation: all prompts in one prefill step, then all sequences in each decode step.

    With `forced` [B, T] those tokens are what each step continues with, whatever was best.
    """
    tables = block_tables(model, [len(prompt) + num_new for prompt in prompts])
    slices = [SequenceSlice(prompt, 0, table, True) for prompt, table in zip(prompts, tables, strict=True)]
    token_ids, logits = [], []
    for step in range(num_new):
        logits.append(model.forward(slices).cpu())
        token_ids.append(logits[-1].argmax(-1))
        following = token_ids[-1] if forced is None else forced[:, step]
        slices = [
            SequenceSlice([token], len(prompt) + step, table, True)
            for token, prompt, table in zip(following.tolist(), prompts, tables, strict=True)
        ]
    return GreedyRun(torch.stack(token_ids, dim=1), torch.stack(logits, dim=1))


def differing(ours: GreedyRun, theirs: GreedyRun, tie_gap: float) -> tuple[int, int]:
    """How many sequences part ways: (at a tie, not at a tie).

    A tie is a step at which the oracle's two best logits are closer than `tie_gap` of the range of its logits.
    """
    ties = faults = 0
    for row in range(ours.token_ids.shape[0]):
        parting = (ours.token_ids[row] != theirs.token_ids[row]).nonzero()
        if not parting.numel():
            continue
        logits = theirs.logits[row, int(parting[0])]
        best = logits.topk(2).values
        if float(best[0] - best[1]) < tie_gap * float(logits.max() - logits.min()):
            ties += 1
        else:
            faults += 1
    return ties, faults


def dequantized(model: Any, quantization_name: str) -> Any:
    """`model` with each decoder linear replaced by what bitsandbytes' bytes stand for, in float32.

    Computed by bitsandbytes from the float16 weights, not by the code under test.
    """
    from bitsandbytes import functional

    with torch.no_grad():
        for layer in model.model.layers:
            for module in layer.modules():
                if not isinstance(module, torch.nn.Linear):
                    continue
                half = module.weight.detach().half()
                if quantization_name == "int8":
                    codes, row_absmax, _ = functional.int8_vectorwise_quant(half)
                    module.weight.copy_(codes.float() * row_absmax[:, None] / 127)
                else:
                    packed, state = functional.quantize_4bit(
                        half, blocksize=64, quant_type="nf4", compress_statistics=quantization_name == "nf4-dq"
                    )
                    state.dtype = torch.float32
                    module.weight.copy_(functional.dequantize_4bit(packed, state))
    return model


def save(model: Any, folder: Path, dtype: torch.dtype, **options: Any) -> Path:
    """Write `model` in `dtype` as transformers writes it."""
    model.to(dtype).save_pretrained(folder, **options)
    return folder
