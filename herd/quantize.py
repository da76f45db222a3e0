"""`herd quantize`: an unquantized folder becomes the 8- or 4-bit checkpoint that transformers saves and loads."""

import shutil
import sys
from pathlib import Path

CARRIED = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "questions.txt",
)


def run_quantize(source: Path, to: str, out: Path, device: str) -> int:
    """Write `out`; the exit status (2: the arguments cannot be served)."""
    if problem := _problem(source, to, out, device):
        print(f"herd quantize: {problem}", file=sys.stderr)
        return 2
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if to == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.float16,
            bnb_4bit_use_double_quant=to == "nf4-dq",
        )
    where = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=config, dtype=torch.float16, device_map={"": where}
    )
    model.save_pretrained(out)
    for name in CARRIED:
        if (source / name).is_file():
            shutil.copy2(source / name, out / name)
    print(f"{out}: {to}, {sum(f.stat().st_size for f in out.iterdir()) / 1e6:,.1f} MB")
    return 0


def _problem(source: Path, to: str, out: Path, device: str) -> str:
    """What is wrong with the arguments, or ''."""
    if to not in ("int8", "nf4", "nf4-dq"):
        return f"--to is int8, nf4 or nf4-dq, not {to!r}"
    if device not in ("auto", "cpu", "cuda"):
        return f"--device is auto, cpu or cuda, not {device!r}"
    if not (source / "config.json").is_file():
        return f"{source} is no model folder: it has no config.json"
    if "quantization_config" in (source / "config.json").read_text():
        return f"{source} is quantized already"
    if out.exists() and any(out.iterdir()):
        return f"{out} exists and is not empty"
    return ""
