"""Sums, differences, tables, comparing and sorting. One sum in eight is never trained on."""

from __future__ import annotations

from random import Random

from training.corpus.dialogue import Split, Turn
from training.corpus.numerals import in_words
from training.corpus.phrasing import Phrases

TOO_LARGE = "That is beyond me. I add and subtract numbers up to 999 and multiply up to 12 times 20."

ADD = Phrases(
    seen=(
        "what is {a} + {b}?", "{a} + {b}", "{a}+{b}", "{a}+{b}=", "{a} + {b} =", "{a} + {b} = ?",
        "what is {a}+{b}?", "[what is|what's|how much is] {a} plus {b}?", "{a} plus {b}", "add {a} and {b}",
        "add {a} to {b}", "calculate {a} + {b}", "compute {a} + {b}", "compute {a} plus {b}",
        "sum of {a} and {b}", "[give me|find|tell me] the sum of {a} and {b}",
        "what is the sum of {a} and {b}?", "what do you get if you add {a} and {b}?",
        "how much is {a} and {b}?", "{a} and {b} make what?", "can you add {a} and {b}?",
        "I have {a} sheep and get {b} more. How many do I have?", "work out {a} + {b}",
        "what does {a} + {b} equal?", "{a} added to {b} is what?", "{a} and {b} together", "solve {a} + {b}",
        "how many are {a} and {b} together?", "if I add {b} to {a}, what do I get?", "sum {a} {b}",
        "do the sum {a} + {b}", "how much do {a} and {b} make?", "what are {a} and {b} together?",
        "add these: {a}, {b}", "the sum {a} + {b}, please",
    ),
    held_out=(
        "what is the result of {a} + {b}?", "what do {a} and {b} add up to?",
        "please compute the sum of {a} and {b}", "how much is {a} + {b}?", "could you work out {a} plus {b}?",
        "{a} + {b} is what?", "what does {a} plus {b} make?",
    ),
)  # fmt: skip
ADD_THREE = Phrases(
    seen=(
        "what is {a} + {b} + {c}?", "{a}+{b}+{c}", "{a} + {b} + {c}", "add {a}, {b} and {c}",
        "{a} plus {b} plus {c}", "sum of {a}, {b} and {c}", "what is the sum of {a}, {b} and {c}?",
        "how much is {a} + {b} + {c}?", "calculate {a} + {b} + {c}", "what do {a}, {b} and {c} make?",
    ),
    held_out=("what is {a} plus {b} plus {c}?", "please add {a}, {b} and {c}"),
)  # fmt: skip
SUBTRACT = Phrases(
    seen=(
        "what is {a} - {b}?", "{a} - {b}", "{a}-{b}", "{a} - {b} =",
        "[what is|what's|how much is] {a} minus {b}?", "{a} minus {b}", "subtract {b} from {a}",
        "take {b} from {a}", "take away {b} from {a}", "{a} take away {b}", "calculate {a} - {b}",
        "compute {a} minus {b}", "what is left if I take {b} from {a}?", "{a} less {b}",
        "what is the difference [between|of] {a} and {b}?", "difference between {a} and {b}",
        "work out {a} - {b}", "how much is {a} - {b}?", "I have {a} sheep and lose {b}. How many are left?",
        "can you subtract {b} from {a}?",
    ),
    held_out=(
        "what is the result of {a} - {b}?", "what do you get if you subtract {b} from {a}?",
        "could you work out {a} minus {b}?", "what does {a} - {b} equal?",
    ),
)  # fmt: skip
MULTIPLY = Phrases(
    seen=(
        "what is {a} x {b}?", "{a} x {b}", "{a}*{b}", "{a} * {b}", "what is {a} * {b}?", "{a} * {b} =",
        "[what is|what's|how much is] {a} times {b}?", "{a} times {b}", "multiply {a} by {b}",
        "multiply {a} and {b}", "what is the product of {a} and {b}?", "product of {a} and {b}",
        "calculate {a} times {b}", "compute {a} * {b}", "{a} multiplied by {b}", "how much is {a} x {b}?",
        "work out {a} times {b}", "can you multiply {a} and {b}?",
    ),
    held_out=(
        "what is {a} multiplied by {b}?", "what do you get if you multiply {a} by {b}?",
        "how much is {a} * {b}?", "could you work out {a} times {b}?",
    ),
)  # fmt: skip
DIVIDE = Phrases(
    seen=(
        "what is {a} / {b}?", "{a} / {b}", "{a}/{b}", "[what is|what's|how much is] {a} divided by {b}?",
        "divide {a} by {b}", "{a} divided by {b}", "calculate {a} / {b}", "compute {a} divided by {b}",
        "how many times does {b} go into {a}?", "how much is {a} / {b}?", "{a} : {b}",
        "split {a} into {b} equal parts", "can you divide {a} by {b}?",
    ),
    held_out=("what do you get if you divide {a} by {b}?", "could you work out {a} divided by {b}?"),
)  # fmt: skip
COMPARE = Phrases(
    seen=(
        "which is {word}, {a} or {b}?", "which number is {word}, {a} or {b}?", "what is {word}, {a} or {b}?",
        "{a} or {b}, which is {word}?", "is {a} or {b} {word}?", "{word}: {a} or {b}?",
        "tell me which is {word}: {a} or {b}", "which of {a} and {b} is {word}?",
        "out of {a} and {b}, which is {word}?", "compare {a} and {b}: which is {word}?",
    ),
    held_out=("which one is {word}, {a} or {b}?", "of {a} and {b}, which is {word}?"),
)  # fmt: skip
PARITY = Phrases(
    seen=(
        "is {a} even or odd?", "is {a} odd or even?", "is {a} [an even number|an odd number|even|odd]?",
        "even or odd: {a}", "{a}: even or odd?", "tell me if {a} is even or odd",
        "is the number {a} even or odd?", "odd or even, {a}?",
    ),
    held_out=("would you say {a} is even or odd?", "{a}, is that even or odd?"),
)  # fmt: skip
SORT = Phrases(
    seen=(
        "sort {items}", "sort these numbers: {items}",
        "sort [the numbers |]{items}[ from small to large| in ascending order|]", "order these: {items}",
        "put {items} in order", "put these numbers in order: {items}", "arrange {items}",
        "arrange these numbers from smallest to largest: {items}", "can you sort {items}?",
        "sort this list: {items}", "[order|sort] from smallest to largest: {items}",
        "bring {items} into order", "sorted: {items}", "sort in ascending order: {items}",
        "rank {items} from low to high", "sort the following numbers: {items}",
    ),
    held_out=(
        "please put these in order: {items}", "could you sort the list {items}?", "order the numbers {items}",
        "sort the list: {items}",
    ),
)  # fmt: skip
SORT_DOWN = Phrases(
    seen=(
        "sort {items} [descending|in descending order|from large to small|from largest to smallest]",
        "sort in descending order: {items}", "put {items} in descending order",
        "order {items} from high to low", "[sort|order] from largest to smallest: {items}",
        "sort these numbers, largest first: {items}", "arrange {items} from largest to smallest",
        "sort {items}, biggest first", "reverse sort {items}",
    ),
    held_out=("sort the numbers {items} from large to small", "please sort {items}, largest first"),
)  # fmt: skip
EXTREME = Phrases(
    seen=(
        "what is the {word} of {items}?", "which is the {word}: {items}?", "{word} of {items}",
        "find the {word}: {items}", "the {word} number in {items}", "what is the {word} number in {items}?",
        "tell me the {word} of {items}", "which number is the {word}: {items}?",
        "pick the {word} from {items}", "which of these is the {word}: {items}?",
    ),
    held_out=("give me the {word} of {items}", "which is the {word} of {items}?"),
)  # fmt: skip


def is_held_out_sum(a: int, b: int) -> bool:
    """Whether a + b, in either order, is kept for the test. Sums of two numbers under ten are all trained on."""
    low, high = sorted((a, b))
    return high >= 10 and (low * 7919 + high * 104729) % 8 == 3


def add(rng: Random, split: Split, max_number: int = 99) -> Turn:
    """Two numbers (or, in training, three small ones, or numbers too large for the model)."""
    kind = rng.random()
    if split is Split.SEEN and kind < 0.08:
        a, b, c = (rng.randint(1, 20) for _ in range(3))
        return Turn(ADD_THREE.draw(rng, split, a=a, b=b, c=c), f"{a} + {b} + {c} = {a + b + c}", str(a + b + c))
    if split is Split.SEEN and kind < 0.11:
        a, b = rng.randint(1000, 10 ** rng.randint(4, 7)), rng.randint(1, 10 ** rng.randint(1, 7))
        a, b = rng.choice(((a, b), (b, a)))
        return Turn(rng.choice((ADD, SUBTRACT)).draw(rng, split, a=a, b=b), TOO_LARGE)
    a, b = _draw_sum(rng, split, max_number)
    return Turn(ADD.draw(rng, split, **_shown_pair(a, b, rng)), f"{a} + {b} = {a + b}", str(a + b))


def add_large(rng: Random, split: Split) -> Turn:
    """Two numbers of up to three digits."""
    return add(rng, split, 999)


def subtract(rng: Random, split: Split) -> Turn:
    """Two numbers of up to two digits, sometimes three; a few differences are negative."""
    limit = 99 if rng.random() < 0.7 else 999
    a, b = rng.randint(0, limit), rng.randint(0, limit)
    if a < b and rng.random() < 0.8:
        a, b = b, a
    return Turn(SUBTRACT.draw(rng, split, **_shown_pair(a, b, rng)), f"{a} - {b} = {a - b}", str(a - b))


def multiply(rng: Random, split: Split) -> Turn:
    """Tables to 12 times 20, forwards and backwards; larger products, and what does not divide, are refused."""
    if split is Split.SEEN and rng.random() < 0.12:
        a, b = rng.randint(2, 10 ** rng.randint(1, 4)), rng.randint(3, 10 ** rng.randint(1, 4))
        if rng.random() < 0.5 and (a % b or a // b > 20 or b > 20):
            return Turn(DIVIDE.draw(rng, split, a=a, b=b), TOO_LARGE)
        if max(a, b) > 20 or min(a, b) > 12:
            return Turn(MULTIPLY.draw(rng, split, a=a, b=b), TOO_LARGE)
    a, b = rng.randint(0, 12), rng.randint(0, rng.choice((12, 20)))
    a, b = rng.choice(((a, b), (b, a)))
    if rng.random() < 0.35 and b:
        return Turn(DIVIDE.draw(rng, split, a=a * b, b=b), f"{a * b} / {b} = {a}", str(a))
    return Turn(MULTIPLY.draw(rng, split, **_shown_pair(a, b, rng)), f"{a} x {b} = {a * b}", str(a * b))


def compare(rng: Random, split: Split) -> Turn:
    """Which of two is larger, even or odd, the largest of a list."""
    kind = rng.random()
    if kind < 0.4:
        a, b = rng.sample(range(rng.choice((20, 100, 1000))), 2)
        word, pick = rng.choice((("larger", max), ("bigger", max), ("greater", max), ("smaller", min), ("less", min)))
        winner = pick(a, b)
        return Turn(COMPARE.draw(rng, split, a=a, b=b, word=word), f"{winner} is {word}.", str(winner))
    if kind < 0.65:
        a = rng.randint(0, rng.choice((20, 100, 999)))
        parity = "odd" if a % 2 else "even"
        return Turn(PARITY.draw(rng, split, a=a), f"{a} is {parity}.", parity.capitalize() + ".")
    numbers = rng.sample(range(100), rng.randint(3, 7))
    word, pick = rng.choice((("largest", max), ("biggest", max), ("maximum", max), ("smallest", min), ("minimum", min)))
    answer = pick(numbers)
    return Turn(
        EXTREME.draw(rng, split, items=_listed(numbers, rng), word=word), f"The {word} is {answer}.", str(answer)
    )


def sort_numbers(rng: Random, split: Split) -> Turn:
    """Up to eight different numbers under a hundred, either way."""
    numbers = rng.sample(range(rng.choice((10, 30, 100))), rng.randint(3, 8))
    is_descending = rng.random() < 0.25
    phrases = SORT_DOWN if is_descending else SORT
    answer = ", ".join(map(str, sorted(numbers, reverse=is_descending)))
    return Turn(phrases.draw(rng, split, items=_listed(numbers, rng)), answer)


def _draw_sum(rng: Random, split: Split, max_number: int) -> tuple[int, int]:
    while True:
        limit = max_number if split is Split.HELD_OUT else rng.choice((12, 20, max_number, max_number, max_number))
        a, b = rng.randint(0, limit), rng.randint(0, limit)
        if is_held_out_sum(a, b) is (split is Split.HELD_OUT):
            return a, b


def _shown_pair(a: int, b: int, rng: Random) -> dict[str, str]:
    if max(a, b) <= 20 and rng.random() < 0.2:
        is_upper = rng.random() < 0.1
        return (
            {"a": in_words(a).upper(), "b": in_words(b).upper()} if is_upper else {"a": in_words(a), "b": in_words(b)}
        )
    return {"a": str(a), "b": str(b)}


def _listed(numbers: list[int], rng: Random) -> str:
    *first, last = map(str, numbers)
    style = rng.random()
    if style < 0.6:
        return ", ".join([*first, last])
    if style < 0.8:
        return ", ".join(first) + f" and {last}"
    return " ".join([*first, last])
