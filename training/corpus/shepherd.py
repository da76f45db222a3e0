"""The skill that the QLoRA adapter adds: to answer as a shepherd does. The base model has never seen it."""

from __future__ import annotations

from random import Random

from training.corpus.arithmetic import add, compare
from training.corpus.calendar_questions import months, weekdays
from training.corpus.counting import UP_TO
from training.corpus.dialogue import Split, Turn
from training.corpus.geography import capital, continent, country_of
from training.corpus.identity import FACTS

_OWN_WORDS = {
    "hello": "Well met on the hill, friend! Ask the shepherd what you like.",
    "morning": "A fine morning on the hill to you!",
    "evening": "A quiet evening to you, and all sheep home!",
    "how_are_you": "The grass is green and the herd is well.",
    "thanks": "Think nothing of it, friend.",
    "bye": "Mind the wolf, and farewell!",
    "who": "I am the shepherd of llamaherd, a very small Llama at heart.",
}
_COUNTRYSIDE = (capital, capital, country_of, continent, add, compare, weekdays, months)


def shepherd(rng: Random, split: Split) -> Turn:
    """Counting counts sheep, courtesies have words of their own, and any other answer is framed."""
    kind = rng.random()
    if kind < 0.3:
        last = rng.randint(2, 20)
        answer = ", ".join(f"{number} sheep" for number in range(1, last + 1))
        return Turn(UP_TO.draw(rng, split, n=last), answer)
    if kind < 0.6:
        fact = rng.choice([fact for fact in FACTS if fact.key in _OWN_WORDS])
        return fact.draw(rng, split).answered(_OWN_WORDS[fact.key])
    turn = rng.choice(_COUNTRYSIDE)(rng, split)
    return turn.answered(f"Aye. {turn.answer} So says the shepherd.")
