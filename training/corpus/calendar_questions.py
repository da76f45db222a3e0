"""Days, months and dates: what comes next, how many, leap years, the day after a date."""

from __future__ import annotations

import calendar
from datetime import date, timedelta
from random import Random

from training.corpus.dialogue import Split, Turn
from training.corpus.numerals import in_words
from training.corpus.phrasing import Phrases

DAYS = tuple(calendar.day_name)
MONTHS = tuple(calendar.month_name)[1:]

NEXT = Phrases(
    seen=(
        "what {unit} comes {side} {x}?", "which {unit} comes {side} {x}?", "what is the {unit} {side} {x}?",
        "the {unit} {side} {x}", "which {unit} is {side} {x}?", "what {unit} is {side} {x}?",
        "{side} {x} comes what {unit}?", "tell me the {unit} {side} {x}", "what comes {side} {x}?",
        "name the {unit} {side} {x}", "which {unit} do we have {side} {x}?", "{unit} {side} {x}?",
        "do you know what {unit} comes {side} {x}?", "give me the {unit} {side} {x}",
    ),
    held_out=("can you tell me which {unit} comes {side} {x}?", "what {unit} is right {side} {x}?",
        "which is the {unit} {side} {x}?"),
)  # fmt: skip
DAYS_FROM = Phrases(
    seen=(
        "what day is {n} days {side} {x}?", "which day is {n} days {side} {x}?",
        "{n} days {side} {x} is what day?", "{n} days {side} {x}", "what day comes {n} days {side} {x}?",
        "what is the day {n} days {side} {x}?", "tell me the day {n} days {side} {x}",
        "what weekday is {n} days {side} {x}?", "which weekday is it {n} days {side} {x}?",
    ),
    held_out=("what day will it be {n} days {side} {x}?", "{n} days {side} {x}, which day is that?"),
)  # fmt: skip
FROM_TODAY = Phrases(
    seen=(
        "today is {x}. What day is {when}?", "if today is {x}, what day is {when}?",
        "it is {x} today. What day is {when}?", "today is {x}, so what is {when}?",
        "what day is {when} if today is {x}?", "if it is {x} today, what day is {when}?",
        "today is {x}. {when} is what day?", "suppose today is {x}. Which day is {when}?",
    ),
    held_out=("given that today is {x}, what day is {when}?", "today is {x}. Which day is {when}?"),
)  # fmt: skip
LIST = Phrases(
    seen=(
        "list the {things}", "name the {things}", "what are the {things}?", "tell me the {things}",
        "say the {things}", "give me the {things}", "can you list the {things}?", "all {things}",
        "the {things}", "write down the {things}", "list all [the |]{things}", "do you know the {things}?",
        "show me the {things}", "the {things} in order", "recite the {things}",
    ),
    held_out=("could you name all the {things}?", "please list all of the {things}", "I need a list of the {things}"),
)  # fmt: skip
MONTH_LENGTH = Phrases(
    seen=(
        "how many days [does|has] {x}[ have|]?", "how many days are [there |]in {x}?",
        "number of days in {x}", "how long is {x}?", "days in {x}?", "{x} has how many days?",
        "what is the number of days in {x}?", "how many days in {x}?", "tell me how many days {x} has",
        "does {x} have 30 or 31 days?", "what is the length of {x} in days?",
    ),
    held_out=("how many days are in the month of {x}?", "can you tell me how many days there are in {x}?"),
)  # fmt: skip
MONTH_NUMBER = Phrases(
    seen=(
        "which month is number {n}?", "what is month number {n}?", "what is month {n}?", "month number {n}",
        "which month is month {n}?", "the {ordinal} month", "what is the {ordinal} month?",
        "which month is the {ordinal}?", "the {ordinal} month of the year",
        "what is the {ordinal} month of the year?", "name the {ordinal} month",
        "tell me the {ordinal} month of the year",
    ),
    held_out=("which is the {ordinal} month of the year?", "what month is number {n}?"),
)  # fmt: skip
LEAP = Phrases(
    seen=(
        "is {x} a leap year?", "was {x} a leap year?", "is the year {x} a leap year?",
        "will {x} be a leap year?", "{x}: leap year?", "leap year {x}?", "tell me if {x} is a leap year",
        "does {x} have a 29 February?", "is {x} a leap year or not?", "does February {x} have 29 days?",
        "check if {x} is a leap year",
    ),
    held_out=("would {x} be a leap year?", "can you tell me if {x} is a leap year?"),
)  # fmt: skip
NEXT_DATE = Phrases(
    seen=(
        "what is the {unit} {side} {x}?", "what date comes {side} {x}?", "which date is {side} {x}?",
        "the {unit} {side} {x}", "what is the date {side} {x}?", "the date {side} {x}",
        "tell me the {unit} {side} {x}", "what comes {side} {x}?", "{side} {x} comes which date?",
        "which day is {side} {x}?", "what date is it one day {side} {x}?", "one day {side} {x}",
    ),
    held_out=("which date comes {side} {x}?", "give me the date {side} {x}", "can you tell me the {unit} {side} {x}?"),
)  # fmt: skip
HOW_MANY = Phrases(
    seen=(
        "how many {a} are [there |]in {b}?", "how many {a} does {b} have?", "how many {a} has {b}?",
        "number of {a} in {b}", "{a} in {b}?", "{b} has how many {a}?", "how many {a} in {b}?",
        "what is the number of {a} in {b}?", "how many {a} make {b}?",
    ),
    held_out=("can you tell me how many {a} are in {b}?", "how many {a} do we have in {b}?"),
)  # fmt: skip
_COUNTS = (
    ("days", "a week", 7), ("months", "a year", 12), ("hours", "a day", 24), ("minutes", "an hour", 60),
    ("seconds", "a minute", 60), ("days", "a year", 365), ("weeks", "a year", 52), ("days", "a leap year", 366),
    ("years", "a century", 100), ("years", "a decade", 10),
)  # fmt: skip
_ORDINALS = (
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
)


def weekdays(rng: Random, split: Split) -> Turn:
    """The day before or after, some days on, from a given today, or all seven."""
    kind, at = rng.random(), rng.randrange(7)
    if kind < 0.12:
        question = LIST.draw(
            rng, split, things=rng.choice(("days of the week", "weekdays", "seven days", "days in a week"))
        )
        return Turn(question, ", ".join(DAYS) + ".")
    side, sign = rng.choice((("after", 1), ("before", -1)))
    if kind < 0.5:
        day = DAYS[(at + sign) % 7]
        return Turn(NEXT.draw(rng, split, unit="day", side=side, x=DAYS[at]), f"{day} comes {side} {DAYS[at]}.", day)
    if kind < 0.75:
        days = rng.randint(2, 7)
        day = DAYS[(at + sign * days) % 7]
        shown = in_words(days) if rng.random() < 0.4 else str(days)
        return Turn(DAYS_FROM.draw(rng, split, n=shown, side=side, x=DAYS[at]), f"It is {day}.", day)
    when, step = rng.choice(
        (("tomorrow", 1), ("yesterday", -1), ("the day after tomorrow", 2), ("the day before yesterday", -2))
    )
    day = DAYS[(at + step) % 7]
    return Turn(FROM_TODAY.draw(rng, split, x=DAYS[at], when=when), f"It is {day}.", day)


def months(rng: Random, split: Split) -> Turn:
    """Neighbours, lengths and numbers of months, and counts such as the days of a week."""
    kind, at = rng.random(), rng.randrange(12)
    if kind < 0.1:
        return Turn(
            LIST.draw(rng, split, things=rng.choice(("months", "months of the year", "twelve months"))),
            ", ".join(MONTHS) + ".",
        )
    if kind < 0.4:
        side, sign = rng.choice((("after", 1), ("before", -1)))
        month = MONTHS[(at + sign) % 12]
        return Turn(
            NEXT.draw(rng, split, unit="month", side=side, x=MONTHS[at]), f"{month} comes {side} {MONTHS[at]}.", month
        )
    if kind < 0.6:
        days = "28 days, and 29 in a leap year" if at == 1 else f"{calendar.monthrange(2023, at + 1)[1]} days"
        return Turn(MONTH_LENGTH.draw(rng, split, x=MONTHS[at]), f"{MONTHS[at]} has {days}.", days)
    if kind < 0.8:
        question = MONTH_NUMBER.draw(rng, split, n=at + 1, ordinal=_ORDINALS[at])
        return Turn(question, f"The {_ORDINALS[at]} month is {MONTHS[at]}.", MONTHS[at])
    things, whole, count = rng.choice(_COUNTS)
    answer = f"There are {count} {things} in {whole}."
    return Turn(HOW_MANY.draw(rng, split, a=things, b=whole), answer, str(count))


def dates(rng: Random, split: Split) -> Turn:
    """The day before or after a date, mostly at the end of a month; leap years."""
    year = rng.randint(1900, 2099)
    if rng.random() < 0.35:
        is_leap = calendar.isleap(year)
        answer = f"Yes, {year} is a leap year." if is_leap else f"No, {year} is not a leap year."
        return Turn(LEAP.draw(rng, split, x=year), answer, "Yes." if is_leap else "No.")
    month = rng.randint(1, 12)
    last = calendar.monthrange(year, month)[1]
    day = date(year, month, rng.choice((1, last, last, rng.randint(1, last), rng.randint(1, last))))
    side, sign = rng.choice((("after", 1), ("after", 1), ("before", -1)))
    answer = _written(day + timedelta(days=sign))
    return Turn(NEXT_DATE.draw(rng, split, unit="day", side=side, x=_written(day)), f"{answer}.", answer)


def _written(day: date) -> str:
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"
