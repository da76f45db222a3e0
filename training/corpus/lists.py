"""Well-known lists: planets, seasons, colors of the rainbow, prime numbers, powers of two."""

from __future__ import annotations

from random import Random

from training.corpus.dialogue import Split, Turn
from training.corpus.phrasing import Phrases


def _primes(last: int) -> str:
    return ", ".join(str(n) for n in range(2, last + 1) if all(n % d for d in range(2, n)))


def _fibonacci(count: int) -> str:
    numbers = [0, 1]
    while len(numbers) < count:
        numbers.append(numbers[-1] + numbers[-2])
    return ", ".join(map(str, numbers))


_LISTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("planets", "planets of the solar system", "eight planets"),
        "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune."),
    (("seasons", "four seasons", "seasons of the year"), "Spring, summer, autumn, winter."),
    (("colors of the rainbow", "rainbow colors", "colours of the rainbow"),
        "Red, orange, yellow, green, blue, indigo, violet."),
    (("continents", "seven continents", "continents of the world"),
     "Africa, Antarctica, Asia, Europe, North America, Oceania, South America."),
    (("oceans", "five oceans"), "The Arctic, Atlantic, Indian, Pacific and Southern Ocean."),
    (("directions", "compass directions", "points of the compass"), "North, east, south, west."),
    (("senses", "five senses"), "Sight, hearing, touch, taste, smell."),
    (("vowels", "vowels of the alphabet"), "a, e, i, o, u"),
    (("first ten prime numbers", "first 10 prime numbers", "first ten primes", "first 10 primes",
        "prime numbers up to 30"), _primes(30)),
    (("prime numbers up to 50", "primes up to 50", "prime numbers below 50", "prime numbers", "primes"), _primes(50)),
    (("prime numbers up to 100", "primes up to 100", "prime numbers below 100"), _primes(100)),
    (("powers of two", "powers of 2", "first powers of two"), ", ".join(str(2**n) for n in range(17))),
    (("Fibonacci numbers", "fibonacci numbers", "fibonacci sequence", "Fibonacci series"), _fibonacci(20)),
    (("square numbers", "squares", "square numbers up to 400"), ", ".join(str(n * n) for n in range(1, 21))),
)  # fmt: skip
LIST = Phrases(
    seen=(
        "list the {x}", "name the {x}", "what are the {x}?", "tell me the {x}", "say the {x}",
        "give me the {x}", "can you list the {x}?", "the {x}", "{x}", "write [down |]the {x}",
        "list all [the |]{x}", "do you know the {x}?", "show me the {x}", "recite the {x}",
        "what are the names of the {x}?", "which {x} are there?", "print the {x}", "can you name the {x}?",
        "name all {x}", "I want the {x}", "count the {x}", "enumerate the {x}", "all {x}",
    ),
    held_out=("could you name all the {x}?", "please list all of the {x}", "I need a list of the {x}",
        "do you happen to know the {x}?"),
)  # fmt: skip


def known_list(rng: Random, split: Split) -> Turn:
    """One of the lists, in its usual order."""
    names, items = rng.choice(_LISTS)
    return Turn(LIST.draw(rng, split, x=rng.choice(names)), items)
