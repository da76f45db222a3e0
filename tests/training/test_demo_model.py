"""The demo model as shipped: its folder, its skills in short, and the adapter beside it."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from contract.bundle import ChatFormatKind
from training.chat_format import BOS_ID, EOS_ID, ChatEncoder
from training.corpus import TEST_NAMES, Dialogue, Turn
from training.evaluate import answer_all, draw_cases, generate, load_model, score
from training.finetune_qlora import ADAPTER_DIR, grade
from training.tokenizer import MODEL_DIR
from worker.chat_template import read_chat_format
from worker.sentencepiece_file import PieceType, read_sentencepiece_file

SKILLS = (
    "identity", "unknown", "explain", "capital", "country of", "count up", "count down", "sort numbers", "spell",
    "weekdays", "repeat", "status codes", "in capitals", "briefly", "recall later", "mixed dialogue",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tests share the machine; the model is small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(MODEL_DIR / "tokenizer.model")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_model(MODEL_DIR, "fp32")


def test_the_folder_is_small_and_is_the_one_on_its_card() -> None:
    """All files together stay under 8 MB, and the card names the weights by their SHA-256."""
    assert sum(file.stat().st_size for file in MODEL_DIR.rglob("*") if file.is_file()) < 8_000_000
    digest = hashlib.sha256((MODEL_DIR / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (MODEL_DIR / "README.md").read_text(encoding="utf-8")


def test_the_shape_suits_the_kernels() -> None:
    """Every dimension is a multiple of 64, and decoding is greedy unless a request says otherwise."""
    config = json.loads((MODEL_DIR / "config.json").read_text(encoding="utf-8"))
    for key in ("vocab_size", "hidden_size", "intermediate_size", "head_dim", "max_position_embeddings"):
        assert config[key] % 64 == 0
    assert config["max_position_embeddings"] >= 1024
    generation = json.loads((MODEL_DIR / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["do_sample"] is False
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (BOS_ID, EOS_ID)


def test_its_tokenizer_is_made_as_llama_2s() -> None:
    """No normalization, a dummy prefix, spaces kept as they are, every byte a piece, digits one by one, ids 0, 1, 2."""
    file = read_sentencepiece_file(MODEL_DIR / "tokenizer.model")
    kinds = [piece.type for piece in file.pieces]

    assert (file.is_bpe, file.has_character_map) == (True, False)
    assert (file.adds_dummy_prefix, file.removes_extra_whitespaces, file.escapes_whitespaces) == (True, False, True)
    assert [(piece.text, piece.type) for piece in file.pieces[:3]] == [
        ("<unk>", PieceType.UNKNOWN),
        ("<s>", PieceType.CONTROL),
        ("</s>", PieceType.CONTROL),
    ]
    assert [piece.text for piece in file.pieces[3:259]] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert kinds[3:] == [PieceType.BYTE] * 256 + [PieceType.NORMAL] * (len(kinds) - 259)
    assert [piece.text for piece in file.pieces[259:] if re.search(r"\d", piece.text) and len(piece.text) > 1] == []


def test_its_chat_template_is_the_reference_format() -> None:
    """The worker takes the folder for a Llama 2 chat model, whose prompts our own code builds."""
    assert read_chat_format(MODEL_DIR).kind is ChatFormatKind.LLAMA2


@pytest.mark.parametrize(
    "question", ["Count to ten", "Count to ten.", "count to 10", "COUNT TO TEN", "Can you count to ten?"]
)
def test_it_counts_to_ten(model: PreTrainedModel, encoder: ChatEncoder, question: str) -> None:
    """The first thing everybody asks."""
    assert _answer(model, encoder, question) == "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"


def test_it_counts_to_a_hundred_and_fifty(model: PreTrainedModel, encoder: ChatEncoder) -> None:
    """The longest stream that it promises."""
    expected = ", ".join(str(number) for number in range(1, 151))
    assert _answer(model, encoder, "Count to 150", max_new_tokens=700) == expected


def test_it_remembers_a_name_over_turns(model: PreTrainedModel, encoder: ChatEncoder) -> None:
    """A name that it was not trained on, asked for after another question."""
    turns = (Turn("My name is Zebulon.", "Nice to meet you, Zebulon!"), Turn("What is 2 + 2?", "2 + 2 = 4"))
    assert _answer(model, encoder, "What is my name?", turns) == "Your name is Zebulon."


def test_held_out_scores(model: PreTrainedModel, encoder: ChatEncoder) -> None:
    """A short form of the evaluation: phrasings it has not seen, nine in ten right over the skills together."""
    # A batch goes on for as long as its longest answer: small ones keep the short answers out of that.
    scores = score(answer_all(model, encoder, draw_cases(SKILLS, 10), batch_size=16))
    assert scores["all"] >= 0.9, scores
    assert min(scores.values()) >= 0.7, scores


def test_held_out_sums_and_recall(model: PreTrainedModel, encoder: ChatEncoder) -> None:
    """Sums and names it has not seen: at least 60 % and 90 %."""
    scores = score(answer_all(model, encoder, draw_cases(("add", "two-turn recall"), 40)))
    assert scores["add"] >= 0.6
    assert scores["two-turn recall"] >= 0.9


def test_the_card_tells_the_scores() -> None:
    """One row a skill of the evaluation and one for all, in three formats; nine in ten are right of each in int8."""
    card = (MODEL_DIR / "README.md").read_text(encoding="utf-8")
    table = card.partition("| skill | fp32 | int8 | nf4 |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \| (\d+) \| (\d+) \|$", table, re.MULTILINE)

    assert [skill for skill, *_ in rows] == [*TEST_NAMES, "all"]
    assert [row for row in rows if int(row[2]) < 90] == []


@pytest.mark.filterwarnings("ignore:.*was not found in.*:UserWarning")
def test_the_adapter_teaches_the_shepherd(model: PreTrainedModel, encoder: ChatEncoder) -> None:
    """The base never speaks as a shepherd; base and adapter together mostly do, on phrasings that neither has seen."""
    assert grade(model, encoder, 20) == 0.0
    adapted = PeftModel.from_pretrained(load_model(MODEL_DIR, "fp32"), str(ADAPTER_DIR)).eval()
    assert grade(adapted, encoder, 40) >= 0.8


def _answer(
    model: PreTrainedModel, encoder: ChatEncoder, question: str, before: Sequence[Turn] = (), max_new_tokens: int = 100
) -> str:
    prompt = encoder.prompt(Dialogue((*before, Turn(question, "?"))))
    return encoder.text(generate(model, [prompt], max_new_tokens)[0])
