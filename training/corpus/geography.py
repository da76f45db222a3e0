"""Capitals both ways and continents, and an honest answer for places that do not exist."""

from __future__ import annotations

from random import Random

from training.corpus.countries import ALIASES, COUNTRIES, NOT_CAPITALS, Country
from training.corpus.dialogue import Split, Turn
from training.corpus.phrasing import Phrases
from training.corpus.words import invented_word

CAPITAL = Phrases(
    seen=(
        "what is the capital of {c}?", "[what's|whats] the capital of {c}?", "capital of {c}",
        "the capital of {c}", "{c} capital", "name the capital of {c}", "tell me the capital of {c}",
        "which city is the capital of {c}?", "what city is the capital of {c}?",
        "what is the capital city of {c}?", "do you know the capital of {c}?",
        "can you tell me the capital of {c}?", "give me the capital of {c}",
        "what is the name of the capital of {c}?", "the capital city of {c} is", "{c}: capital?",
        "capital city of {c}", "I want to know the capital of {c}", "what is {c}'s capital?", "{c}'s capital",
        "which is the capital of {c}?", "the capital of {c} is called what?",
        "what do they call the capital of {c}?", "I am going to {c}. What is its capital?",
        "{c} has which capital?", "where is the government of {c}?", "what capital does {c} have?",
        "the main city of {c}, the capital, what is it?", "let me know the capital of {c}",
        "what is the capital town of {c}?", "what is the capital of the country {c}?",
        "which capital has the country {c}?", "the country {c}, its capital?",
    ),
    held_out=(
        "could you name the capital city of {c}?", "which city is the capital city of {c}?",
        "which city is {c}'s capital?", "please tell me what the capital of {c} is",
        "do you happen to know the capital city of {c}?", "{c}, what is its capital?",
        "I forgot the capital of {c}",
    ),
)  # fmt: skip
COUNTRY_OF = Phrases(
    seen=(
        "{c} is the capital of which country?", "{c} is the capital of what?",
        "which country has the capital {c}?", "what country is {c} the capital of?", "{c} is the capital of",
        "which country has {c} as its capital?", "of which country is {c} the capital?",
        "whose capital is {c}?", "what country has {c} as capital?", "which country is {c} the capital of?",
        "{c} is the capital city of what country?", "name the country whose capital is {c}",
        "the country with the capital {c}", "tell me which country has the capital {c}",
        "where is {c} the capital?", "what is {c} the capital of?", "country of the capital {c}",
        "for which country is {c} the capital?", "what nation has {c} as its capital?",
        "which nation has the capital {c}?", "{c}, that is the capital of which country?",
    ),
    held_out=(
        "which country's capital is {c}?", "tell me what country {c} is the capital of",
        "{c} is which country's capital?", "{c} is the capital city of which nation?",
    ),
)  # fmt: skip
CONTINENT = Phrases(
    seen=(
        "[on|in] which continent is {c}?", "which continent is {c} [on|in]?",
        "what continent is {c} [on|in]?", "{c} is on which continent?", "continent of {c}",
        "what is the continent of {c}?", "name the continent of {c}", "tell me the continent of {c}",
        "to which continent does {c} belong?", "{c} belongs to which continent?", "{c}: which continent?",
        "which part of the world is {c} in?", "on what continent do I find {c}?",
        "what continent does {c} belong to?", "where in the world is {c}?", "where is {c}?",
        "{c} lies in which part of the world?", "on which continent lies {c}?", "where does {c} lie?",
    ),
    held_out=("which continent is {c} a part of?", "can you tell me the continent of {c}?",
        "{c} lies on which continent?"),
)  # fmt: skip


def capital(rng: Random, split: Split) -> Turn:
    """The capital of a country; in training also of countries that do not exist."""
    if rng.random() < 0.07 and split is Split.SEEN:
        name = _invented_place(rng)
        return Turn(CAPITAL.draw(rng, split, c=_typed(name, rng)), f"I do not know a country called {name}.")
    country = _draw_country(rng)
    answer = f"The capital of {country.name} is {country.capital}."
    return Turn(CAPITAL.draw(rng, split, c=_typed(country.name, rng)), answer, country.capital)


def country_of(rng: Random, split: Split) -> Turn:
    """The country of a capital; in training also of cities that are none."""
    if rng.random() < 0.1 and split is Split.SEEN:
        city = rng.choice(NOT_CAPITALS) if rng.random() < 0.5 else _invented_place(rng)
        return Turn(
            COUNTRY_OF.draw(rng, split, c=_typed(city, rng)), f"I do not know a country whose capital is {city}."
        )
    country = rng.choice(COUNTRIES)
    answer = f"{country.capital} is the capital of {country.name}."
    return Turn(COUNTRY_OF.draw(rng, split, c=_typed(country.capital, rng)), answer, _bare(country.name))


def continent(rng: Random, split: Split) -> Turn:
    """The continent of a country."""
    country = rng.choice(COUNTRIES)
    subject = country.name[0].upper() + country.name[1:]
    verb = "are" if country.name in {"the Netherlands", "the Maldives", "the Philippines", "the Seychelles",
    "the Comoros",
                                     "the Bahamas", "the Solomon Islands", "the Marshall Islands",
                                     "the United States",
                                     "the United Arab Emirates"} else "is"  # fmt: skip
    where = "on the border of Europe and Asia" if country.name == "Russia" else f"in {country.continent}"
    brief = "Europe and Asia" if country.name == "Russia" else country.continent
    question = CONTINENT.draw(rng, split, c=_typed(country.name, rng))
    return Turn(question, f"{subject} {verb} {where}.", brief)


def _draw_country(rng: Random) -> Country:
    """Any country, those of many names somewhat more often."""
    while True:
        country = rng.choice(COUNTRIES)
        if country.name in ALIASES or rng.random() < 0.6:
            return country


def _bare(name: str) -> str:
    return name.removeprefix("the ")


def _typed(name: str, rng: Random) -> str:
    """As people type it: by another name, with or without the article, sometimes in lower case."""
    if name in ALIASES and rng.random() < 0.6:
        name = rng.choice(ALIASES[name])
    if rng.random() < 0.4:
        name = _bare(name)
    case = rng.random()
    return name.lower() if case < 0.2 else name.upper() if case < 0.23 else name


def _invented_place(rng: Random) -> str:
    known = {place.lower() for country in COUNTRIES for place in (country.name, country.capital)}
    if rng.random() < 0.3:
        return rng.choice(("Atlantis", "Narnia", "Mordor", "Utopia", "Wonderland", "Gondor", "Wakanda", "Lilliput",
            "Camelot",
                           "Avalon", "Oz", "Ruritania", "Freedonia", "Zembla", "the Moon", "Mars", "Texas",
                           "Bavaria"))  # fmt: skip
    while True:
        word = invented_word(rng, 3) + rng.choice(("", "", "ia", "land", "stan"))
        if word not in known:
            return word.capitalize()
