"""Many ways to ask one thing: templates with choices, some held out for the test, and the noise of real typing.

A template is text with `[a|b|]` choices (they nest) and `{name}` places. Noise touches the text between the
places only, so that a name, a number or a sentence to repeat reaches the model as it was drawn.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from training.corpus.dialogue import Split

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_PLACE = re.compile(r"(\{\w+\})")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

BEFORE = (
    "please ", "hey, ", "hi, ", "hello, ", "ok, ", "okay, ", "so, ", "now ", "well, ", "quick question: ",
    "tell me, ", "can you tell me: ", "one more thing: ", "and ", "please, ", "alright, ", "hi there, ",
    "next: ", "excuse me, ", "I have a question: ", "llama, ", "dear model, ", "could you help me? ",
    "question: ", "and now ", "for me: ",
)  # fmt: skip
AFTER = (
    " please", ", please", " thanks", ", thanks", " for me", " now", " thank you", ", can you", ", would you",
    " again", ", if you can", ", my friend", " then", " right now", " today", ", ok",
)  # fmt: skip
_SMALL_WORDS = frozenset(
    {"the", "a", "an", "me", "of", "is", "to", "please", "you", "do", "can", "i", "it", "are", "in"}
)


@dataclass(frozen=True, slots=True)
class Phrases:
    """The ways to ask one thing. `held_out` templates are never trained on.

    `is_quote` marks templates whose end belongs to the user's own words: nothing is put around or after them.
    """

    seen: tuple[str, ...]
    held_out: tuple[str, ...]
    is_quote: bool = False

    def draw(self, rng: Random, split: Split, **places: object) -> str:
        """One way of asking, with the places filled in."""
        template = expand(rng.choice(self.seen if split is Split.SEEN else self.held_out), rng)
        return roughen(template, rng, split, self.is_quote).format(**places)


def expand(template: str, rng: Random) -> str:
    """Resolve every `[a|b]` choice, innermost first."""
    while match := _CHOICE.search(template):
        template = template[: match.start()] + rng.choice(match[1].split("|")) + template[match.end() :]
    return template


def roughen(template: str, rng: Random, split: Split, is_quote: bool) -> str:
    """Type the template as people do: case, punctuation, courtesies, lost words, slips of the finger."""
    if not is_quote:
        template = _add_courtesy(template, rng)
    is_seen = split is Split.SEEN
    style = rng.random()
    if style < 0.55:
        template = template[0].upper() + template[1:]
        if not is_quote and template[-1].isalnum() and rng.random() < 0.5:
            template += rng.choice((".", ".", "!"))
    elif style < 0.93 or not is_seen:
        if template[-1] in "?.!" and rng.random() < 0.6:
            template = template[:-1]
    elif style < 0.97:
        template = _each_text(template, str.lower)
    else:
        template = _each_text(template, str.upper)
    if is_seen and rng.random() < 0.06:
        template = _drop_small_word(template, rng)
    if is_seen and rng.random() < 0.14:
        template = _each_text(template, lambda text: _slip(text, rng))
    return template


def _add_courtesy(template: str, rng: Random) -> str:
    chance = rng.random()
    if chance < 0.16:
        template = rng.choice(BEFORE) + template
    if 0.10 < chance < 0.22:
        end = template[-1] if template[-1] in "?.!" else ""
        template = template.removesuffix(end) + rng.choice(AFTER) + end
    return template


def _each_text(template: str, change: object) -> str:
    """Apply `change` to the text between the places."""
    assert callable(change)
    parts = _PLACE.split(template)
    return "".join(part if part.startswith("{") else change(part) for part in parts)


def _drop_small_word(template: str, rng: Random) -> str:
    words = template.split(" ")
    small = [index for index, word in enumerate(words) if word.lower() in _SMALL_WORDS]
    if not small or len(words) < 4:
        return template
    del words[rng.choice(small)]
    return " ".join(words)


def _slip(text: str, rng: Random) -> str:
    """One slip in a text of some length: two letters swapped, one lost, doubled or wrong."""
    spots = [at for at in range(len(text) - 1) if text[at].isalpha() and text[at + 1].isalpha()]
    if len(spots) < 4:
        return text
    at, kind = rng.choice(spots), rng.randrange(4)
    if kind == 0:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    if kind == 1:
        return text[:at] + text[at + 1 :]
    if kind == 2:
        return text[:at] + text[at] + text[at:]
    return text[:at] + rng.choice(_LETTERS) + text[at + 1 :]
