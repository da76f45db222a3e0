"""The whole corpus: which skills there are, how often each is drawn, and how turns join into dialogues."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from training.corpus.arithmetic import add, add_large, compare, multiply, sort_numbers, subtract
from training.corpus.calendar_questions import dates, months, weekdays
from training.corpus.counting import count_by_steps, count_down, count_up
from training.corpus.dialogue import Dialogue, Split, Turn
from training.corpus.follow_up import draw_follow_up
from training.corpus.geography import capital, continent, country_of
from training.corpus.identity import identity
from training.corpus.letters import count_letters, repeat, reverse, sort_words, spell, upper_case
from training.corpus.lists import known_list
from training.corpus.memory import Skill, draw_echo, draw_missing, draw_recall
from training.corpus.service import explain
from training.corpus.status_codes import status_code
from training.corpus.stories import story
from training.corpus.system_prompts import draw_asked_brief, draw_foreign, draw_named, draw_neutral, draw_styled
from training.corpus.unknown import unknown

# One turn each, with the weight it is drawn by in training.
SKILLS: dict[str, tuple[Skill, float]] = {
    "identity": (identity, 9),
    "unknown": (unknown, 10),
    "explain": (explain, 7),
    "capital": (capital, 7),
    "country of": (country_of, 4),
    "continent": (continent, 2),
    "count up": (count_up, 7),
    "count down": (count_down, 3),
    "count by steps": (count_by_steps, 3),
    "add": (add, 9),
    "add to 999": (add_large, 7),
    "subtract": (subtract, 7),
    "multiply": (multiply, 4),
    "compare": (compare, 3),
    "sort numbers": (sort_numbers, 4),
    "sort words": (sort_words, 3),
    "spell": (spell, 5),
    "reverse": (reverse, 4),
    "letters": (count_letters, 4),
    "upper case": (upper_case, 2),
    "repeat": (repeat, 8),
    "weekdays": (weekdays, 4),
    "months": (months, 4),
    "dates": (dates, 4),
    "lists": (known_list, 2),
    "status codes": (status_code, 4),
    "story": (story, 3),
}
_NAMES = tuple(SKILLS)
_TURNS = tuple(skill for skill, _ in SKILLS.values())
_WEIGHTS = tuple(weight for _, weight in SKILLS.values())
_SHORT: tuple[Skill, ...] = (
    identity,
    unknown,
    capital,
    country_of,
    add,
    subtract,
    spell,
    repeat,
    weekdays,
    months,
    compare,
    explain,
)
_STYLED: tuple[Skill, ...] = (
    identity,
    identity,
    capital,
    capital,
    country_of,
    continent,
    add,
    weekdays,
    months,
    explain,
    unknown,
    compare,
    spell,
)
_COMPLETE_TEXT: tuple[Skill, ...] = (identity, explain, unknown, capital, country_of, continent, weekdays, dates)

# Whole dialogues; the last turn is the one a test grades.
DIALOGUES: dict[str, Callable[[Random, Split], Dialogue]] = {
    "two-turn recall": lambda rng, split: draw_recall(rng, split, _SHORT, max_fillers=0),
    "recall later": lambda rng, split: draw_recall(rng, split, _SHORT),
    "never told": lambda rng, split: draw_missing(rng, split, _SHORT),
    "say it again": lambda rng, split: draw_echo(rng, split, (*_SHORT, count_up, known_list)),
    "follow-up": draw_follow_up,
    "in capitals": lambda rng, split: draw_styled(rng, split, _STYLED, "capitals"),
    "in lower case": lambda rng, split: draw_styled(rng, split, _STYLED, "lower"),
    "briefly": lambda rng, split: draw_styled(rng, split, _STYLED, "brief"),
    "asked to be brief": lambda rng, split: draw_asked_brief(rng, split, _STYLED),
    "as a pirate": lambda rng, split: draw_styled(rng, split, _COMPLETE_TEXT, "pirate"),
    "as a butler": lambda rng, split: draw_styled(rng, split, _COMPLETE_TEXT, "butler"),
    "first word given": lambda rng, split: draw_styled(rng, split, _STYLED, "starts"),
    "last word given": lambda rng, split: draw_styled(rng, split, _STYLED, "ends"),
    "in another language": draw_foreign,
    "names by system prompt": lambda rng, split: draw_named(rng, split, _SHORT),
}
_DIALOGUE_WEIGHTS = (3, 5, 1.5, 2, 2, 2.2, 1.2, 2, 1, 1, 1, 0.8, 0.8, 2, 2)


def draw_training(rng: Random) -> Dialogue:
    """One dialogue of the training mixture."""
    kind = rng.random()
    if kind < 0.48:
        return Dialogue((_turn(rng),))
    if kind < 0.56:
        return Dialogue((_turn(rng),), draw_neutral(rng))
    if kind < 0.70:
        system = draw_neutral(rng) if rng.random() < 0.3 else ""
        return Dialogue(tuple(_turn(rng) for _ in range(rng.randint(2, 5))), system)
    drawn: Dialogue = rng.choices(tuple(DIALOGUES.values()), _DIALOGUE_WEIGHTS)[0](rng, Split.SEEN)
    if not drawn.system and rng.random() < 0.15:
        return Dialogue(drawn.turns, draw_neutral(rng))
    return drawn


def draw_test(name: str, rng: Random) -> Dialogue:
    """One held-out dialogue of a skill, a kind of dialogue, or `mixed dialogue`: any skill after other turns."""
    if name in SKILLS:
        return Dialogue((SKILLS[name][0](rng, Split.HELD_OUT),))
    if name in DIALOGUES:
        return DIALOGUES[name](rng, Split.HELD_OUT)
    assert name == MIXED
    turns = tuple(rng.choices(_TURNS, _WEIGHTS)[0](rng, Split.HELD_OUT) for _ in range(rng.randint(2, 4)))
    return Dialogue(turns, draw_neutral(rng) if rng.random() < 0.5 else "")


MIXED = "mixed dialogue"
TEST_NAMES = (*_NAMES, *DIALOGUES, MIXED)


def _turn(rng: Random) -> Turn:
    return rng.choices(_TURNS, _WEIGHTS)[0](rng, Split.SEEN)
