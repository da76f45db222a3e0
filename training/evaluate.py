"""Grades a model folder on held-out dialogues, skill by skill, by greedy decoding with transformers.

    python -m training.evaluate                          # the demo model in fp32, int8 and NF4
    python -m training.evaluate DIR --formats int8 --cases 50 --failures 3

int8 and NF4 are bitsandbytes', quantized on load; they run on a CPU. No phrasing, name or sum of the test
is trained on.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from training.chat_format import EOS_ID, ChatEncoder
from training.corpus import TEST_NAMES, Check, Dialogue, draw_test
from training.tokenizer import MODEL_DIR

SEED = 99
_STORY_TOKENS = 420
_SLACK_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Case:
    """One dialogue of the test and the skill that it counts for."""

    skill: str
    dialogue: Dialogue


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to a case."""

    case: Case
    text: str

    @property
    def is_right(self) -> bool:
        """Whether the last turn accepts the text."""
        return self.case.dialogue.turns[-1].accepts(self.text)


def draw_cases(skills: Sequence[str], num_cases: int, seed: int = SEED) -> list[Case]:
    """The same cases for the same arguments; each skill has a seed of its own."""
    cases = []
    for skill in skills:
        rng = Random(f"{seed}/{skill}")
        cases += [Case(skill, draw_test(skill, rng)) for _ in range(num_cases)]
    return cases


def load_model(model_dir: Path, weight_format: str, device: str = "cpu") -> PreTrainedModel:
    """The model in "fp32", "int8" (LLM.int8) or "nf4" (with compute in fp32)."""
    options: dict[str, Any] = {"dtype": torch.float32}
    if weight_format == "int8":
        # It warns of its cast to fp16 at every call of every layer.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    elif weight_format == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
    else:
        assert weight_format == "fp32"
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model_dir, device_map=device, **options)
    return model.eval()


def answer_all(
    model: PreTrainedModel, encoder: ChatEncoder, cases: Sequence[Case], batch_size: int = 64
) -> list[Answer]:
    """Greedy answers, batched by the length of the expected answer; a longer one is cut off and so wrong."""
    ranked = sorted(cases, key=lambda case: _max_new_tokens(case, encoder))
    answers = []
    for at in range(0, len(ranked), batch_size):
        batch = ranked[at : at + batch_size]
        prompts = [encoder.prompt(case.dialogue) for case in batch]
        limit = max(_max_new_tokens(case, encoder) for case in batch)
        rows = generate(model, prompts, limit)
        answers += [Answer(case, encoder.text(row)) for case, row in zip(batch, rows, strict=True)]
    return answers


def generate(model: PreTrainedModel, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
    """New ids for each prompt, greedily; the batch is padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[EOS_ID] * (width - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=EOS_ID
        )
    rows: list[list[int]] = out[:, width:].tolist()
    return rows


def score(answers: Sequence[Answer]) -> dict[str, float]:
    """Share of right answers for each skill, in the order of `TEST_NAMES`, then for all together as "all"."""
    by_skill: dict[str, list[bool]] = {}
    for answer in answers:
        by_skill.setdefault(answer.case.skill, []).append(answer.is_right)
    ordered = {name: by_skill[name] for name in sorted(by_skill, key=_place)}
    ordered["all"] = [answer.is_right for answer in answers]
    return {name: sum(right) / len(right) for name, right in ordered.items()}


def table(scores: dict[str, dict[str, float]]) -> Iterator[str]:
    """A Markdown table: one row a skill, one column a format, in per cent."""
    formats = list(scores)
    yield "| skill | " + " | ".join(formats) + " |"
    yield "| --- |" + " ---: |" * len(formats)
    for skill in scores[formats[0]]:
        yield f"| {skill} | " + " | ".join(f"{100 * scores[name][skill]:.0f}" for name in formats) + " |"


def _place(name: str) -> int:
    return TEST_NAMES.index(name) if name in TEST_NAMES else len(TEST_NAMES)


def _max_new_tokens(case: Case, encoder: ChatEncoder) -> int:
    turn = case.dialogue.turns[-1]
    if turn.check is Check.STORY:
        return _STORY_TOKENS
    longest = max((turn.answer, *turn.also), key=len)
    return len(encoder.pieces.encode(longest)) + _SLACK_TOKENS


def _print_failures(answers: Sequence[Answer], max_failures: int) -> None:
    shown: dict[str, int] = {}
    for answer in answers:
        skill = answer.case.skill
        if not answer.is_right and shown.get(skill, 0) < max_failures:
            shown[skill] = shown.get(skill, 0) + 1
            dialogue = answer.case.dialogue
            turn = dialogue.turns[-1]
            print(f"[{skill}] {dialogue.system[:80]!r} {turn.user!r}\n    {answer.text!r}\n    not {turn.answer!r}")


def main() -> None:
    """Grade one folder in each format and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path, nargs="?", default=MODEL_DIR)
    parser.add_argument("--formats", nargs="+", default=["fp32", "int8", "nf4"], choices=["fp32", "int8", "nf4"])
    parser.add_argument("--skills", nargs="+", default=list(TEST_NAMES), choices=TEST_NAMES, metavar="SKILL")
    parser.add_argument("--cases", type=int, default=50, help="cases for each skill")
    parser.add_argument("--failures", type=int, default=0, help="show so many wrong answers of each skill")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the scores to this file too")
    arguments = parser.parse_args()
    encoder = ChatEncoder(MODEL_DIR / "tokenizer.model")
    cases, scores = draw_cases(arguments.skills, arguments.cases), {}
    for weight_format in arguments.formats:
        begun = time.monotonic()
        answers = answer_all(load_model(arguments.model_dir, weight_format, arguments.device), encoder, cases)
        scores[weight_format] = score(answers)
        print(f"{weight_format}: {len(cases)} cases in {time.monotonic() - begun:.0f} s", flush=True)
        _print_failures(answers, arguments.failures)
    print("\n".join(table(scores)))
    if arguments.json:
        arguments.json.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
