"""The corpus: the same everywhere, nothing of the test in the training, and Meta's format to the token."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from random import Random

import bitsandbytes.functional
import pytest
import torch

import training.corpus
from training.chat_format import BOS_ID, EOS_ID, IGNORED, ChatEncoder
from training.corpus import TEST_NAMES, Dialogue, Split, Turn, draw_test, draw_training
from training.corpus.arithmetic import is_held_out_sum
from training.corpus.facts import Fact
from training.corpus.memory import Memo
from training.corpus.phrasing import Phrases
from training.corpus.shepherd import shepherd
from training.corpus.system_prompts import Style
from training.corpus.words import HELD_OUT_NAMES, NAMES
from training.model import CompactLlama, Shape, as_nf4, attend_each
from training.pack import pack
from training.tokenizer import MODEL_DIR

TOKENIZER_FILE = MODEL_DIR / "tokenizer.model"


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(TOKENIZER_FILE)


def test_a_seed_decides_the_corpus() -> None:
    """The same seed draws the same dialogues, and another seed others."""
    first, again, other = (
        [draw_training(rng) for rng in [Random(seed)] for _ in range(300)] for seed in ("a", "a", "b")
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", TEST_NAMES)
def test_a_test_can_be_drawn_again(name: str) -> None:
    """Every skill and kind of dialogue has held-out cases, the same for the same seed."""
    drawn = [[draw_test(name, rng) for rng in [Random(1)] for _ in range(20)] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert all(turn.user and turn.answer for dialogue in drawn[0] for turn in dialogue.turns)


def test_no_held_out_phrasing_is_trained_on() -> None:
    """Written out in full, the seen and the held-out templates of a question share no text."""
    checked = 0
    for name, phrases in _all_phrases():
        seen, held_out = (
            {_plain(t) for form in forms for t in _written_out(form)} for forms in (phrases.seen, phrases.held_out)
        )
        assert not seen & held_out, name
        checked += 1
    assert checked > 120


def test_no_held_out_name_or_sum_is_trained_on() -> None:
    """Names and sums kept for the test do not occur in training dialogues; the test draws nothing else."""
    assert not set(NAMES) & set(HELD_OUT_NAMES)
    rng = Random(3)
    for _ in range(4000):
        for turn in draw_training(rng).turns:
            assert not set(re.findall(r"\w+", f"{turn.user} {turn.answer}")) & set(HELD_OUT_NAMES)
            if match := re.fullmatch(r"(\d+) \+ (\d+) = \d+", turn.answer):
                assert not is_held_out_sum(int(match[1]), int(match[2]))
    for _ in range(200):
        a, b = map(int, re.findall(r"\d+", draw_test("add", rng).turns[0].answer)[:2])
        assert is_held_out_sum(a, b)


def test_arithmetic_and_counting_are_right() -> None:
    """The answers taught are true."""
    rng = Random(5)
    for _ in range(300):
        left, right = draw_test("subtract", rng).turns[0].answer.split(" = ")
        a, b = left.split(" - ")
        assert int(a) - int(b) == int(right)
    assert any(
        turn.answer == "1, 2, 3, 4, 5, 6, 7, 8, 9, 10" for _ in range(300) for turn in draw_test("count up", rng).turns
    )


def test_prompts_are_as_in_the_reference(encoder: ChatEncoder) -> None:
    """Each turn is BOS, its text encoded by itself, and EOS, as in `chat_completion` of Meta's llama repository."""
    dialogue = Dialogue((Turn("Hi", "Hello!"), Turn("Count to two", "1, 2")), system="Be brief.")
    encode = encoder.pieces.encode
    first = [BOS_ID, *encode("[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello! "), EOS_ID]
    second = [BOS_ID, *encode("[INST] Count to two [/INST]")]
    assert encoder.prompt(dialogue) == first + second


def test_only_answers_are_taught_and_they_end_clean(encoder: ChatEncoder) -> None:
    """Labels are the answer's tokens and EOS; the ids are those of the reference for any drawn dialogue."""
    rng = Random(7)
    for _ in range(200):
        dialogue = draw_training(rng)
        ids, labels = encoder.example(dialogue)
        assert ids == _reference_ids(dialogue, encoder)
        taught = [label for label in labels if label != IGNORED]
        assert taught == [i for turn in dialogue.turns for i in (*encoder.pieces.encode(turn.answer), EOS_ID)]
        assert all(label in (ids[at + 1], EOS_ID) for at, label in enumerate(labels) if label != IGNORED)


def test_any_text_survives_the_tokenizer(encoder: ChatEncoder) -> None:
    """Byte fallback: text of any script comes back as it went in."""
    for text in ("Grüße 🦙", "你好, мир", "a  b   c", "if (x < 3) { y += 1; }"):
        assert encoder.text([*encoder.pieces.encode(text), EOS_ID, 5]) == text


def test_packing_keeps_whole_dialogues() -> None:
    """Starts cut the tokens into dialogues, each from BOS to EOS; longer ones than allowed are left out."""
    corpus = pack(TOKENIZER_FILE, 300, seed=1, max_tokens=200, num_processes=1)
    assert corpus.starts[0] == 0
    assert corpus.starts[-1] == len(corpus.tokens) == len(corpus.labels)
    assert 0 < len(corpus.starts) - 1 < 300
    for begin, end in zip(corpus.starts[:-1], corpus.starts[1:], strict=True):
        assert end - begin <= 200
        assert (corpus.tokens[begin], corpus.tokens[end - 1]) == (BOS_ID, EOS_ID)


def test_packed_dialogues_do_not_see_each_other() -> None:
    """The loss of two dialogues packed together is that of each alone."""
    torch.manual_seed(0)
    model = CompactLlama(Shape(num_layers=2))
    tokens = torch.randint(3, 1280, (50,))
    positions = torch.cat((torch.arange(20), torch.arange(30)))
    with torch.inference_mode():
        both = model(tokens, positions, tokens, torch.tensor([0, 20, 50, 50]), attend_each, None)
        alone = [
            model(tokens[a:b], positions[a:b], tokens[a:b], torch.tensor([0, b - a]), attend_each, None)
            for a, b in ((0, 20), (20, 50))
        ]
    torch.testing.assert_close(both, (20 * alone[0] + 30 * alone[1]) / 50)


def test_nf4_noise_is_what_bitsandbytes_stores() -> None:
    """The weights that training sees as NF4 are those that bitsandbytes gives back, bit for bit."""
    weight = torch.randn(256, 448, generator=torch.Generator().manual_seed(0)) * 0.05
    packed, state = bitsandbytes.functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert torch.equal(as_nf4(weight), bitsandbytes.functional.dequantize_4bit(packed, state))


def test_the_shepherd_counts_sheep() -> None:
    """The skill of the adapter has answers that the base corpus never gives."""
    rng = Random(2)
    answers = [shepherd(rng, Split.HELD_OUT).answer for _ in range(200)]
    assert any(answer.startswith("1 sheep, 2 sheep") for answer in answers)
    assert not any("2 sheep" in turn.answer for _ in range(2000) for turn in draw_training(rng).turns)


def _all_phrases() -> Iterator[tuple[str, Phrases]]:
    for module_info in pkgutil.iter_modules(training.corpus.__path__):
        module = importlib.import_module(f"training.corpus.{module_info.name}")
        for name, value in vars(module).items():
            for member in value if isinstance(value, tuple) else (value,):
                if isinstance(member, Phrases):
                    yield name, member
                elif isinstance(member, Fact):
                    yield member.key, Phrases(member.seen, member.held_out)
                elif isinstance(member, Memo):
                    yield f"{name} told", member.tell
                    yield f"{name} asked", member.ask
                elif isinstance(member, Style):
                    yield member.key, member.ask


def _written_out(template: str) -> Iterator[str]:
    match = re.search(r"\[([^\[\]]*)\]", template)
    if match is None:
        yield template
        return
    for choice in match[1].split("|"):
        yield from _written_out(template[: match.start()] + choice + template[match.end() :])


def _plain(text: str) -> str:
    return text.lower().rstrip("?.!")


def _reference_ids(dialogue: Dialogue, encoder: ChatEncoder) -> list[int]:
    ids: list[int] = []
    for index, turn in enumerate(dialogue.turns):
        content = turn.user
        if index == 0 and dialogue.system:
            content = f"<<SYS>>\n{dialogue.system}\n<</SYS>>\n\n{turn.user}"
        ids += [BOS_ID, *encoder.pieces.encode(f"[INST] {content.strip()} [/INST] {turn.answer.strip()} "), EOS_ID]
    return ids
