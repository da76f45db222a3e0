"""Adds a small skill to the demo model by QLoRA: it learns to answer as a shepherd.

    python -m training.finetune_qlora

The base stays in bitsandbytes NF4 and is not touched; the adapter is trained beside it, saved in PEFT's format and
in fp16, and graded against the base alone on questions that neither has been trained on. A few minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from random import Random

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from training.chat_format import EOS_ID, IGNORED, ChatEncoder
from training.corpus.dialogue import Dialogue, Split
from training.corpus.shepherd import shepherd
from training.evaluate import Case, answer_all, load_model
from training.tokenizer import MODEL_DIR

SEED = 11
RANK = 8
ADAPTER_DIR = MODEL_DIR / "adapters" / "shepherd"
_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def finetune(
    base: PreTrainedModel, encoder: ChatEncoder, steps: int, batch_size: int, learning_rate: float
) -> PeftModel:
    """Train an adapter on the NF4 base; only the adapter's parameters change."""
    torch.manual_seed(SEED)
    rng = Random(SEED)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=_MODULES, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)  # freezes the base
    model.train()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate)
    begun = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
        ids, labels = _draw_batch(encoder, rng, batch_size)
        logits = model(input_ids=ids).logits.float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 25 == 0:
            print(f"step {step} loss {loss.item():.3f} {time.monotonic() - begun:.0f} s", flush=True)
    model.eval()
    assert isinstance(model, PeftModel)
    return model


def save_adapter(model: PeftModel, adapter_dir: Path) -> None:
    """Write the adapter in PEFT's format, its weights in fp16."""
    adapter_dir.mkdir(parents=True, exist_ok=True)
    weights = {name: w.to("cpu", torch.float16).contiguous() for name, w in get_peft_model_state_dict(model).items()}
    save_file(weights, adapter_dir / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "llamaherd-demo",
        "inference_mode": True,
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": _MODULES,
    }
    (adapter_dir / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def grade(model: PreTrainedModel | PeftModel, encoder: ChatEncoder, num_cases: int) -> float:
    """Share of held-out questions that the model answers as the shepherd would."""
    rng = Random(f"{SEED}/test")
    cases = [Case("shepherd", Dialogue((shepherd(rng, Split.HELD_OUT),))) for _ in range(num_cases)]
    answers = answer_all(model, encoder, cases)
    for answer in [a for a in answers if not a.is_right][:3]:
        print(f"  {answer.case.dialogue.turns[-1].user!r} -> {answer.text!r}")
    return sum(answer.is_right for answer in answers) / num_cases


def _draw_batch(encoder: ChatEncoder, rng: Random, batch_size: int) -> tuple[Tensor, Tensor]:
    """ids and labels [B, T] int64, padded on the right; the causal mask keeps the padding out of sight."""
    examples = [encoder.example(Dialogue((shepherd(rng, Split.SEEN),))) for _ in range(batch_size)]
    width = max(len(ids) for ids, _ in examples)
    ids = torch.tensor([ids + [EOS_ID] * (width - len(ids)) for ids, _ in examples])
    labels = torch.tensor([targets + [IGNORED] * (width - len(targets)) for _, targets in examples])
    return ids, labels.masked_fill(labels == IGNORED, -100)


def main() -> None:
    """Grade the base, train the adapter, save it, and grade base and adapter together as loaded from disk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ADAPTER_DIR)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--cases", type=int, default=100, help="held-out questions")
    arguments = parser.parse_args()
    encoder = ChatEncoder(MODEL_DIR / "tokenizer.model")
    alone = grade(load_model(MODEL_DIR, "nf4"), encoder, arguments.cases)
    print(f"base alone: {alone:.0%} of {arguments.cases}", flush=True)
    adapted = finetune(
        load_model(MODEL_DIR, "nf4"), encoder, arguments.steps, arguments.batch_size, arguments.learning_rate
    )
    save_adapter(adapted, arguments.out)
    loaded = PeftModel.from_pretrained(load_model(MODEL_DIR, "nf4"), str(arguments.out)).eval()
    print(f"with the adapter: {grade(loaded, encoder, arguments.cases):.0%} of {arguments.cases}")


if __name__ == "__main__":
    main()
