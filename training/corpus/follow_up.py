"""Follow-up questions that only the turn before explains: "And of Spain?", "And to twenty?", "Now backwards"."""

from __future__ import annotations

from random import Random

from training.corpus.arithmetic import is_held_out_sum
from training.corpus.counting import UP_TO
from training.corpus.countries import COUNTRIES
from training.corpus.dialogue import Dialogue, Split, Turn
from training.corpus.geography import CAPITAL
from training.corpus.phrasing import Phrases

CAPITAL_TOO = Phrases(
    seen=(
        "and of {c}?", "and {c}?", "what about {c}?", "and for {c}?", "and the one of {c}?",
        "and that of {c}?", "how about {c}?", "now {c}", "and what about {c}?", "the same for {c}", "{c}?",
        "and of {c}, what is it?", "then {c}?", "and in {c}?", "also {c}?",
    ),
    held_out=("and how about {c}?", "what about the one of {c}?", "and now of {c}?"),
)  # fmt: skip
COUNT_TOO = Phrases(
    seen=(
        "and to {n}?", "now to {n}", "and now to {n}", "what about {n}?", "to {n}", "and up to {n}?",
        "now [up |]to {n} please", "do it to {n}", "the same to {n}", "go [on |]to {n}", "and until {n}?",
        "how about {n}?", "again, but to {n}", "then to {n}", "now {n}",
    ),
    held_out=("and now up to {n}?", "what about to {n}?", "the same up to {n}"),
)  # fmt: skip
BACKWARDS = Phrases(
    seen=(
        "and backwards?", "now backwards", "and in reverse?", "now in reverse", "backwards", "and down again",
        "now the other way [round|around]", "and back?", "reverse it", "reverse that", "and the other way?",
        "now down", "and now backwards", "can you do it backwards?", "in reverse order",
    ),
    held_out=("and now in reverse?", "the other way round, please", "could you do that backwards?"),
)  # fmt: skip
ADD_MORE = Phrases(
    seen=(
        "add {b}", "plus {b}", "and plus {b}?", "now add {b}", "and {b} more?", "+ {b}", "add {b} to that",
        "add {b} to it", "and if I add {b}?", "plus {b} more", "then add {b}", "what if I add {b}?",
        "that plus {b}", "and with {b} more?",
    ),
    held_out=("now plus {b}", "please add {b} to that", "and that plus {b}?"),
)  # fmt: skip


def draw_follow_up(rng: Random, split: Split) -> Dialogue:
    """A question and one to three that lean on it."""
    kind = rng.random()
    if kind < 0.4:
        first, *rest = rng.sample(COUNTRIES, rng.randint(2, 4))
        turns = [Turn(CAPITAL.draw(rng, split, c=first.name), f"The capital of {first.name} is {first.capital}.")]
        turns += [
            Turn(CAPITAL_TOO.draw(rng, split, c=c.name), f"The capital of {c.name} is {c.capital}.") for c in rest
        ]
        return Dialogue(tuple(turns))
    if kind < 0.75:
        counts = [rng.randint(2, 25) for _ in range(rng.randint(1, 3))]
        turns = [Turn(UP_TO.draw(rng, split, n=counts[0]), _listed(range(1, counts[0] + 1)))]
        turns += [Turn(COUNT_TOO.draw(rng, split, n=n), _listed(range(1, n + 1))) for n in counts[1:]]
        if len(counts) == 1 or rng.random() < 0.5:
            turns.append(Turn(BACKWARDS.draw(rng, split), _listed(range(counts[-1], 0, -1))))
        return Dialogue(tuple(turns))
    while True:
        a, b, c = (rng.randint(1, 49) for _ in range(3))
        if split is Split.HELD_OUT or not (is_held_out_sum(a, b) or is_held_out_sum(a + b, c)):
            break
    first_sum = Turn(f"{a} + {b}", f"{a} + {b} = {a + b}")
    return Dialogue((first_sum, Turn(ADD_MORE.draw(rng, split, b=c), f"{a + b} + {c} = {a + b + c}")))


def _listed(numbers: range) -> str:
    return ", ".join(map(str, numbers))
