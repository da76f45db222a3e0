"""Counting up, down and by steps: the long, checkable streams of the demo."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from training.corpus.dialogue import Split, Turn
from training.corpus.numerals import ONE_TO_TWENTY, in_words
from training.corpus.phrasing import Phrases

MAX_COUNT = 150  # 1 to 150 is 641 tokens; with a dialogue before it, still inside the context of 1,024
TOO_FAR = f"That is too long for me. I count up to {MAX_COUNT}."

UP_TO = Phrases(
    seen=(
        "count to {n}",
        "count [up |][from one |from 1 |]to {n}",
        "can you count [up |]to {n}?",
        "count till {n}",
        "list the numbers from [1|one] to {n}",
        "give me [the |all |all the |]numbers [from |][1|one] to {n}",
        "numbers [from 1 |]to {n}",
        "say the numbers [up |]to {n}",
        "let me hear you count to {n}",
        "I want you to count [up |]to {n}",
        "print [the numbers |numbers |]1 to {n}",
        "1 to {n}",
        "write [out |down |][the |all |]numbers [from |]1 [to|through|up to|until] {n}",
        "show me [the |]numbers up to {n}",
        "start at [1|one] and count [up |]to {n}",
        "start from [1|one] and go [up |]to {n}",
        "count from 1 until {n}",
        "all [the |]numbers [up |]to {n}",
        "stream the numbers from 1 to {n}",
        "do you know how to count to {n}?",
        "count for me until you reach {n}",
        "count until you get to {n}",
        "go from 1 to {n}",
        "begin with [1|one] and stop at {n}",
        "begin counting at one, end at {n}",
        "how do you count to {n}?",
        "[could|would|will] you count to {n} for me?",
        "I would like to hear the numbers to {n}",
        "1, 2, 3 and so on to {n}",
        "try counting to {n}",
        "start counting, stop at {n}",
        "count as far as {n}",
        "counting to {n}",
        "name the numbers from one to {n}",
        "let's count [up |]to {n}",
        "tell me the numbers from 1 through {n}",
    ),
    held_out=(
        "would you count up until {n}?",
        "start counting at one and end at {n}",
        "recite the numbers from one to {n}",
        "please show how you count to {n}",
        "let us count to {n} together",
        "I need the numbers 1 to {n}",
        "count up all the way to {n}",
    ),
)
FROM_TO = Phrases(
    seen=(
        "count from {a} to {b}",
        "count up from {a} to {b}",
        "numbers from {a} to {b}",
        "list [the |all |]numbers from {a} [to|until|up to|through] {b}",
        "start at {a} and count [up |]to {b}",
        "start with {a} and stop at {b}",
        "give me the numbers between {a} and {b}",
        "{a} to {b}",
        "can you count from {a} to {b}?",
        "begin at {a} and go [up |]to {b}",
        "write the numbers [from |]{a} to {b}",
        "say [the |]numbers {a} through {b}",
        "go from {a} to {b}",
        "count on from {a} until {b}",
        "starting at {a}, count to {b}",
        "print {a} to {b}",
    ),
    held_out=(
        "count starting from {a} up to {b}",
        "show the numbers from {a} to {b}",
        "I want the numbers {a} to {b}",
        "please start counting at {a} and end at {b}",
    ),
)
DOWN = Phrases(
    seen=(
        "count down from {a} to {b}",
        "count backwards from {a} to {b}",
        "count down, {a} to {b}",
        "countdown from {a} to {b}",
        "start at {a} and count down to {b}",
        "start at {a} and go [down|back] to {b}",
        "numbers from {a} down to {b}",
        "list the numbers from {a} down to {b}",
        "can you count [down|backwards] from {a} to {b}?",
        "give me a countdown from {a} to {b}",
        "go down from {a} to {b}",
        "go backwards from {a} to {b}",
        "count in reverse from {a} to {b}",
        "begin at {a} and count backwards to {b}",
        "say the numbers backwards from {a} to {b}",
    ),
    held_out=(
        "count back down from {a} to {b}",
        "I want a countdown, from {a} to {b}",
        "list the numbers backwards from {a} to {b}",
        "start with {a} and count down until {b}",
    ),
)
DOWN_TO_ONE = Phrases(
    seen=(
        "count down from {a}",
        "count backwards from {a}",
        "countdown from {a}",
        "give me a countdown from {a}",
        "start a countdown at {a}",
        "can you count down from {a}?",
        "count down starting at {a}",
        "do a countdown from {a}",
        "count from {a} backwards",
        "start at {a} and count down",
        "rocket launch in {a}",
        "{a} and counting down",
    ),
    held_out=(
        "would you do a countdown starting from {a}?",
        "count in reverse from {a}",
        "start the countdown from {a}",
        "begin at {a} and count backwards",
    ),
)
BY_STEPS = Phrases(
    seen=(
        "count to {n} by {k}s",
        "count by {k}s to {n}",
        "count in {k}s to {n}",
        "count [up |]to {n} in steps of {k}",
        "count in steps of {k} up to {n}",
        "count by {k} to {n}",
        "count to {n} by {k}",
        "[list|give me|write] [the |]multiples of {k} up to {n}",
        "skip count by {k} to {n}",
        "can you count by {k}s [up |]to {n}?",
        "numbers to {n} in steps of {k}",
        "go up to {n} in steps of {k}",
        "every {k} up to {n}",
        "count to {n}, {k} at a time",
        "count {k} by {k} to {n}",
        "show me the multiples of {k} to {n}",
    ),
    held_out=(
        "count up by {k}s until {n}",
        "I want you to count in {k}s up to {n}",
        "count up to {n} with steps of {k}",
        "say the multiples of {k} up to {n}",
    ),
)
EVENS = Phrases(
    seen=(
        "[list|give me|show me|say|write] the {parity} numbers [up |]to {n}",
        "count the {parity} numbers [up |]to {n}",
        "{parity} numbers [up |]to {n}",
        "all {parity} numbers up to {n}",
        "what are the {parity} numbers up to {n}?",
        "only the {parity} numbers to {n}",
        "which {parity} numbers are there up to {n}?",
    ),
    held_out=("tell me the {parity} numbers up to {n}", "I want the {parity} numbers to {n}"),
)
IN_WORDS = (" in words", " as words", ", in words", " using words", ", written as words", " with words", " spelled out")
NEIGHBOR = Phrases(
    seen=(
        "what [number |]comes [{side}|right {side}|just {side}] {n}?",
        "which number is [right |just |]{side} {n}?",
        "what is the number {side} {n}?",
        "the number {side} {n}",
        "what number is {side} {n}?",
        "{side} {n} comes what number?",
        "tell me the number {side} {n}",
        "name the number that comes {side} {n}",
    ),
    held_out=("which number comes {side} {n}?", "give me the number {side} {n}"),
)
FOREIGN = Phrases(
    seen=(
        "count to {n} in {language}",
        "count [up |]to {n} in {language}[ please|]",
        "can you count to {n} in {language}?",
        "in {language}, count to {n}",
        "numbers from 1 to {n} in {language}",
        "how do you count to {n} in {language}?",
        "say the numbers to {n} in {language}",
        "{language} numbers up to {n}",
        "list the {language} numbers from 1 to {n}",
        "I want to hear {language} numbers to {n}",
    ),
    held_out=("would you count in {language} to {n}?", "count from one to {n} in {language}"),
)


def count_up(rng: Random, split: Split) -> Turn:
    """From one, or from any number, in digits or in words."""
    kind = rng.random()
    if kind < 0.55:
        last = _draw_last(rng)
        return _counted(UP_TO.draw(rng, split, n=_shown(last, rng)), range(1, last + 1), rng)
    if kind < 0.62 and split is Split.SEEN:
        far = rng.choice((151, 160, 200, 250, 300, 500, 1000, 2000, 5000, 10000, 1000000, rng.randint(151, 99999)))
        return Turn(UP_TO.draw(rng, split, n=far), TOO_FAR)
    if kind < 0.80:
        first = rng.randint(0, 110)
        last = min(first + rng.randint(2, 40), MAX_COUNT)
        question = FROM_TO.draw(rng, split, a=_shown(first, rng), b=_shown(last, rng))
        return _counted(question, range(first, last + 1), rng)
    if kind < 0.9:
        number, side = rng.randint(1, 200), rng.choice(("after", "before"))
        neighbor = number + 1 if side == "after" else number - 1
        return Turn(NEIGHBOR.draw(rng, split, side=side, n=number), f"{neighbor} comes {side} {number}.", str(neighbor))
    language, last = rng.choice(tuple(ONE_TO_TWENTY)), rng.randint(3, 20)
    question = FOREIGN.draw(rng, split, n=_shown(last, rng), language=language)
    return Turn(question, ", ".join(ONE_TO_TWENTY[language][:last]))


def count_down(rng: Random, split: Split) -> Turn:
    """To one, or to any lower number."""
    if rng.random() < 0.5:
        first = min(_draw_last(rng), 100)
        return _counted(DOWN_TO_ONE.draw(rng, split, a=_shown(first, rng)), range(first, 0, -1), rng)
    first = rng.randint(4, 120)
    last = rng.choice((0, 1, max(0, first - rng.randint(3, 30))))
    if first - last > 100:
        last = first - 20
    question = DOWN.draw(rng, split, a=_shown(first, rng), b=_shown(last, rng))
    return _counted(question, range(first, last - 1, -1), rng)


def count_by_steps(rng: Random, split: Split) -> Turn:
    """Multiples of a step, even numbers, odd numbers."""
    if rng.random() < 0.3:
        parity, last = rng.choice(("even", "odd")), rng.randint(4, 60)
        start = 2 if parity == "even" else 1
        return _counted(EVENS.draw(rng, split, parity=parity, n=_shown(last, rng)), range(start, last + 1, 2), rng)
    step = rng.choice((2, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10, 11, 12, 20, 25, 50, 100))
    last = step * rng.randint(2, 20)
    question = BY_STEPS.draw(rng, split, k=_shown(step, rng, 0.15), n=_shown(last, rng))
    return _counted(question, range(step, last + 1, step), rng)


def _draw_last(rng: Random) -> int:
    """Mostly short streams, ten above all, and some long ones."""
    kind = rng.random()
    if kind < 0.12:
        return 10
    if kind < 0.35:
        return rng.randint(2, 12)
    if kind < 0.7:
        return rng.randint(5, 30)
    if kind < 0.92:
        return rng.choice((20, 25, 30, 40, 50, 60, 75, 99, 100, rng.randint(30, 100)))
    return rng.choice((100, 120, 150, rng.randint(100, MAX_COUNT)))


def _shown(number: int, rng: Random, words: float = 0.3) -> str:
    if number > 100 or rng.random() > words:
        return str(number)
    spelled, case = in_words(number), rng.random()
    return spelled.upper() if case < 0.1 else spelled.capitalize() if case < 0.2 else spelled


def _counted(question: str, numbers: Iterable[int], rng: Random) -> Turn:
    """The answer in digits, or in words where the question then asks for words."""
    numbers = list(numbers)
    if max(numbers) <= 100 and rng.random() < (0.15 if len(numbers) <= 30 else 0.05):
        end = question[-1] if question[-1] in "?.!" else ""
        question = question.removesuffix(end) + rng.choice(IN_WORDS) + end
        return Turn(question, ", ".join(map(in_words, numbers)))
    return Turn(question, ", ".join(map(str, numbers)))
