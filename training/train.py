"""Trains the demo model and writes its folder.

    python -m training.train --seconds 285            # one GPU: packs the corpus, trains, writes
    python -m training.train --steps 50 --dialogues 4000 --batch-tokens 2048   # a trial on a CPU

The seeds are fixed, so the corpus is the same everywhere; a GPU's arithmetic is not, so training again gives other
bytes. The learning rate warms up and then falls by a cosine to zero; in the second half every other step sees the
weights as NF4 stores them, so that quantization costs little.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.chat_format import BOS_ID, EOS_ID, IGNORED
from training.model import Attention, CompactLlama, Shape, attend_each, attend_varlen
from training.pack import PackedCorpus, pack
from training.tokenizer import MODEL_DIR

SEED = 7
_WARMUP_STEPS = 200
_MIN_MEAN_TOKENS = (
    40  # of a dialogue; bounds are padded to batch_tokens // 40, so that the compiled step sees one shape
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast to train. `seconds` 0 means `steps` decides."""

    seconds: float
    steps: int
    batch_tokens: int
    learning_rate: float
    nf4_from: float = 0.5  # share of the training after which every other step sees NF4 weights


class Batches:
    """Cuts a packed corpus on the device into batches of a fixed number of tokens, each beginning with a dialogue.

    The dialogue at the end of a batch is cut off there; the next batch begins with the one after it.
    """

    def __init__(self, corpus: PackedCorpus, batch_tokens: int, device: torch.device) -> None:
        self.tokens = torch.from_numpy(corpus.tokens).to(device)
        self.labels = torch.from_numpy(corpus.labels).to(device)
        self.starts = torch.from_numpy(corpus.starts)
        self.batch_tokens, self.device = batch_tokens, device
        self.at = 0  # index into starts

    def next(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """tokens, positions, labels [N] int64, and the bounds of `attend_varlen`; wraps around at the end."""
        begin = int(self.starts[self.at])
        if begin + self.batch_tokens > self.tokens.shape[0]:
            self.at, begin = 0, 0
        after = int(torch.searchsorted(self.starts, begin + self.batch_tokens))
        starts = (self.starts[self.at : after] - begin).to(self.device, non_blocking=True)
        self.at = after
        tokens = self.tokens[begin : begin + self.batch_tokens].to(torch.int64)
        labels = self.labels[begin : begin + self.batch_tokens].to(torch.int64)
        labels = torch.where(labels == IGNORED, -100, labels)
        order = torch.arange(self.batch_tokens, device=self.device)
        positions = order - starts[torch.searchsorted(starts, order, right=True) - 1]
        bounds = torch.full(
            (self.batch_tokens // _MIN_MEAN_TOKENS,), self.batch_tokens, dtype=torch.int32, device=self.device
        )
        bounds[: starts.shape[0]] = starts.to(torch.int32)
        return tokens, positions, labels, bounds


def train(model: CompactLlama, corpus: PackedCorpus, plan: Plan, device: torch.device) -> None:
    """Train the model, in fp32 on `device`, in place."""
    is_cuda = device.type == "cuda"
    attend: Attention = attend_varlen if is_cuda else attend_each
    batches = Batches(corpus, plan.batch_tokens, device)
    step_fn = torch.compile(model) if is_cuda else model
    optimizer = torch.optim.AdamW(_parameter_groups(model), lr=0.0, betas=(0.9, 0.98), fused=is_cuda)
    nf4_share = torch.zeros((), device=device)
    clock, total_steps, step, started = time.monotonic, plan.steps, 0, 0.0
    while step < total_steps:
        if step == 20:
            _wait(device)
            started = clock()
        if plan.seconds and step == 60:
            _wait(device)
            total_steps = 60 + int((plan.seconds - (clock() - started)) / ((clock() - started) / 40))
            print(f"step {step}: {(clock() - started) / 40 * 1000:.1f} ms a step, so {total_steps} steps", flush=True)
        progress = step / total_steps
        _set_learning_rate(optimizer, plan.learning_rate, step, progress)
        nf4_share.fill_(1.0 if progress > plan.nf4_from and step % 2 else 0.0)
        tokens, positions, labels, bounds = batches.next()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_cuda):
            loss = step_fn(tokens, positions, labels, bounds, attend, nf4_share)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % max(1, total_steps // 40) == 0 or step < 3:
            print(f"step {step} loss {loss.item():.4f} {clock() - started if started else 0:.0f} s", flush=True)
        step += 1
    _wait(device)
    rate = (step - 20) * plan.batch_tokens / (clock() - started) if step > 20 else 0.0
    print(f"{step} steps, {step * plan.batch_tokens / 1e6:.0f} M tokens, {rate / 1e6:.2f} M tokens/s", flush=True)


def save(model: CompactLlama, model_dir: Path) -> None:
    """Write the weights in fp16 and the two configs, as transformers writes a Llama."""
    model_dir.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(weights, model_dir / "model.safetensors", metadata={"format": "pt"})
    (model_dir / "config.json").write_text(json.dumps(_config(model.shape), indent=2) + "\n", encoding="utf-8")
    generation = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "do_sample": False, "max_new_tokens": 768}
    (model_dir / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": None,
        "use_cache": True,
        "torch_dtype": "float16",
    }


def _parameter_groups(model: CompactLlama) -> list[dict[str, object]]:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]


def _set_learning_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, progress: float) -> None:
    rate = peak * min(1.0, (step + 1) / _WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * progress))
    for group in optimizer.param_groups:
        group["lr"] = rate


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Pack, train, save."""
    arguments = _parse_arguments()
    begun = time.monotonic()
    corpus = pack(
        MODEL_DIR / "tokenizer.model", arguments.dialogues, arguments.seed, Shape().max_positions, os.cpu_count() or 1
    )
    num_dialogues, num_tokens = corpus.starts.shape[0] - 1, corpus.tokens.shape[0]
    print(f"{num_dialogues} dialogues, {num_tokens / 1e6:.0f} M tokens, {time.monotonic() - begun:.0f} s", flush=True)
    plan = Plan(arguments.seconds, arguments.steps, arguments.batch_tokens, arguments.learning_rate, arguments.nf4_from)
    torch.manual_seed(SEED)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = CompactLlama(Shape()).to(device)
    if arguments.resume_from:
        model.load_state_dict(
            {name: w.float() for name, w in load_file(arguments.resume_from / "model.safetensors").items()}
        )
    train(model, corpus, plan, device)
    save(model, arguments.out)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=MODEL_DIR, help="folder to write; tokenizer.model is read from the demo model's"
    )
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="train for this long, measured after the first 20 steps"
    )
    parser.add_argument("--steps", type=int, default=20_000, help="number of steps, unless --seconds is given")
    parser.add_argument("--dialogues", type=int, default=3_000_000, help="size of the corpus")
    parser.add_argument("--batch-tokens", type=int, default=65_536, help="tokens in a step")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="its peak")
    parser.add_argument(
        "--nf4-from", type=float, default=0.5, help="share of the training after which NF4 weights are seen too"
    )
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the corpus")
    parser.add_argument("--resume-from", type=Path, help="a folder whose weights training starts from")
    return parser.parse_args()


if __name__ == "__main__":
    main()
