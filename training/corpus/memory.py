"""Dialogues in which something said earlier is asked for later, or has never been said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from training.corpus.dialogue import Dialogue, Split, Turn
from training.corpus.phrasing import Phrases
from training.corpus.words import ANIMALS, COLORS, FOODS, PLACES, draw_name, draw_word

Skill = Callable[[Random, Split], Turn]


@dataclass(frozen=True, slots=True)
class Memo:
    """One thing a user may tell: `{x}` is what is remembered. `missing` is the answer if it was never told."""

    tell: Phrases
    noted: str
    ask: Phrases
    recalled: str
    missing: str


NAME = Memo(
    Phrases(
        seen=(
            "my name is {x}", "I am {x}", "I'm {x}", "call me {x}", "you can call me {x}",
            "people call me {x}", "this is {x}", "it's me, {x}", "name: {x}", "I go by {x}",
            "hi, my name is {x}", "hello, I am {x}", "hello, my name is {x}", "my name's {x}",
            "remember that my name is {x}", "my first name is {x}", "I am called {x}", "just call me {x}",
            "they call me {x}", "{x} here", "hi, {x} here", "note that my name is {x}",
            "please remember: my name is {x}", "by the way, my name is {x}", "good day, I am {x}",
            "my friends call me {x}", "the name is {x}", "I am known as {x}",
        ),
        held_out=(
            "hello, {x} is my name", "everyone calls me {x}", "let me introduce myself: I am {x}",
            "good morning, my name is {x}", "hi there, I'm {x}",
        ),
    ),
    "Nice to meet you, {x}!",
    Phrases(
        seen=(
            "what is my name?", "what's my name?", "whats my name", "who am I?", "do you remember my name?",
            "do you know my name?", "say my name", "tell me my name", "my name?", "what am I called?",
            "what did I say my name was?", "what name did I give you?", "do you remember who I am?",
            "do you know who I am?", "how am I called?", "can you tell me my name?", "remember my name?",
            "which name did I tell you?", "what was my name?", "what is my name again?", "and my name is?",
            "did you forget my name?", "who are you talking to?", "so what is my name?", "repeat my name",
            "I told you my name. What is it?", "what is the name I gave you?", "what is the name I told you?",
            "do you have my name?",
        ),
        held_out=(
            "can you remember my name?", "what name do I have?", "please tell me what my name is",
            "do you still know my name?", "what was my name again?",
        ),
    ),
    "Your name is {x}.",
    "You have not told me your name.",
)  # fmt: skip
COLOR = Memo(
    Phrases(
        seen=(
            "my favorite color is {x}", "I like {x} best", "the color I like most is {x}",
            "{x} is my favorite color", "my favourite color is {x}", "remember that my favorite color is {x}",
            "of all colors I like {x} most", "I love the color {x}", "I like {x}",
        ),
        held_out=("the color I love is {x}", "please remember that {x} is my favorite color"),
    ),
    "I will remember that your favorite color is {x}.",
    Phrases(
        seen=(
            "what is my favorite color?", "which color do I like?", "what color do I like best?",
            "my favorite color?", "do you remember my favorite color?", "tell me my favorite color",
            "what did I say my favorite color was?", "what's my favourite color?",
            "which color do I like best?", "what is the color I like?",
        ),
        held_out=("can you tell me my favorite color?", "which color is my favorite?"),
    ),
    "Your favorite color is {x}.",
    "You have not told me your favorite color.",
)  # fmt: skip
FOOD = Memo(
    Phrases(
        seen=(
            "my favorite food is {x}", "I like to eat {x}", "{x} is my favorite food",
            "the food I like most is {x}", "I love to eat {x}", "my favourite food is {x}",
            "remember that my favorite food is {x}", "I eat {x} every day because I love it", "I like {x}",
            "I love {x}",
        ),
        held_out=("the food I love is {x}", "please remember that {x} is my favorite food"),
    ),
    "I will remember that your favorite food is {x}.",
    Phrases(
        seen=(
            "what is my favorite food?", "which food do I like?", "what food do I like best?",
            "what do I like to eat?", "my favorite food?", "do you remember my favorite food?",
            "tell me my favorite food", "what's my favourite food?",
        ),
        held_out=("can you tell me my favorite food?", "which food is my favorite?"),
    ),
    "Your favorite food is {x}.",
    "You have not told me your favorite food.",
)  # fmt: skip
FAVORITE = Memo(
    Phrases(
        seen=(
            "my favorite {a} is {x}", "{x} is my favorite {a}", "my favourite {a} is {x}",
            "remember that my favorite {a} is {x}", "the {a} I like best is {x}",
            "of all {a}s I like {x} most", "the {a} I like most is {x}", "I have a favorite {a}: {x}",
            "{x}, that is my favorite {a}", "you should know that {x} is my favorite {a}",
        ),
        held_out=("the {a} I love is {x}", "please remember that {x} is my favorite {a}"),
    ),
    "I will remember that your favorite {a} is {x}.",
    Phrases(
        seen=(
            "what is my favorite {a}?", "which {a} do I like?", "what {a} do I like best?",
            "my favorite {a}?", "which {a} do I like best?", "do you remember my favorite {a}?",
            "tell me my favorite {a}", "what did I say my favorite {a} was?", "what's my favourite {a}?",
            "what is the {a} I like?", "do you know my favorite {a}?", "which {a} was my favorite one?",
            "which {a} do I love most?", "name my favorite {a}", "so what is my favorite {a}?",
            "what was my favorite {a}?",
        ),
        held_out=("can you tell me my favorite {a}?", "which {a} is my favorite?"),
    ),
    "Your favorite {a} is {x}.",
    "You have not told me your favorite {a}.",
)  # fmt: skip
HOME = Memo(
    Phrases(
        seen=(
            "I live in {x}", "I am from {x}", "my home is in {x}", "I come from {x}", "my city is {x}",
            "I live in the city of {x}", "remember that I live in {x}", "my home town is {x}",
            "I have moved to {x}", "I'm from {x}", "my house is in {x}",
        ),
        held_out=("the city I live in is {x}", "please remember that I live in {x}"),
    ),
    "I will remember that you live in {x}.",
    Phrases(
        seen=(
            "where do I live?", "where am I from?", "which city do I live in?", "in which city do I live?",
            "what is my city?", "what is my home town?", "do you remember where I live?",
            "tell me where I live", "where is my home?", "where do I come from?",
        ),
        held_out=("can you tell me where I live?", "what city do I live in?"),
    ),
    "You live in {x}.",
    "You have not told me where you live.",
)  # fmt: skip
PET = Memo(
    Phrases(
        seen=(
            "my {a} is called {x}", "I have a {a} called {x}", "I have a {a} named {x}",
            "the name of my {a} is {x}", "my {a}'s name is {x}", "my pet is a {a} named {x}",
            "{x} is the name of my {a}", "remember that my {a} is called {x}", "my {a} is {x}",
        ),
        held_out=("I own a {a} whose name is {x}", "we have a {a} named {x}"),
    ),
    "{x} is a good name.",
    Phrases(
        seen=(
            "what is the name of my {a}?", "what is my {a} called?", "how is my {a} called?",
            "what is my {a}'s name?", "name of my {a}?", "do you remember the name of my {a}?",
            "tell me the name of my {a}", "what did I call my {a}?", "who is my {a}?",
        ),
        held_out=("can you tell me the name of my {a}?", "which name has my {a}?"),
    ),
    "Your {a} is called {x}.",
    "You have not told me about that.",
)  # fmt: skip
WORD = Memo(
    Phrases(
        seen=(
            "remember the word {x}", "remember this word: {x}", "the secret word is {x}",
            "the password is {x}", "my word is {x}", "keep this word in mind: {x}",
            "please remember the word {x}", "memorize the word {x}", "do not forget the word {x}",
            "remember: {x}", "keep the word {x}", "note the word {x}", "the magic word is {x}",
            "our code word is {x}",
        ),
        held_out=("try to remember the word {x}", "store the word {x}", "can you remember the word {x}?"),
    ),
    "I will remember the word {x}.",
    Phrases(
        seen=(
            "what was the word?", "which word should you remember?", "what is the secret word?",
            "what word did I tell you?", "what is the password?", "tell me the word", "say the word",
            "do you remember the word?", "what was my word?", "what is the word?", "the word?",
            "which word did I give you?", "what was the secret word?", "what is the magic word?",
            "what is our code word?", "repeat the word that I told you",
        ),
        held_out=("which word was it?", "can you tell me the word?", "what word did I ask you to remember?"),
    ),
    "The word is {x}.",
    "You have not told me a word.",
)  # fmt: skip
NUMBER = Memo(
    Phrases(
        seen=(
            "remember the number {x}", "my number is {x}", "remember this number: {x}",
            "my lucky number is {x}", "the number is {x}", "keep the number {x} in mind",
            "please remember the number {x}", "I am thinking of the number {x}", "note the number {x}",
        ),
        held_out=("try to remember the number {x}", "can you remember the number {x}?"),
    ),
    "I will remember the number {x}.",
    Phrases(
        seen=(
            "what was the number?", "what is my number?", "which number did I tell you?",
            "what is the number?", "tell me the number", "what is my lucky number?",
            "do you remember the number?", "the number?", "what number did I give you?", "say my number",
            "which number should you remember?",
        ),
        held_out=("which number was it?", "can you tell me the number?"),
    ),
    "The number is {x}.",
    "You have not told me a number.",
)  # fmt: skip
MEMOS = (NAME, NAME, NAME, COLOR, FOOD, FAVORITE, HOME, PET, WORD, NUMBER)
_FAVORITE_THINGS = (
    "animal", "drink", "sport", "language", "city", "season", "fruit", "game", "book", "song", "movie",
    "color", "food", "flower", "tree", "bird", "place", "day", "month", "toy", "band", "team", "car",
    "country", "word", "library", "editor", "database", "model", "tool",
)  # fmt: skip

LAST_SAID = Phrases(
    seen=(
        "what did I just say?", "what did I say?", "repeat what I said", "what was my last message?",
        "what did I just ask?", "what was my last question?", "repeat my last message", "repeat my question",
        "what did I write?", "what was that I said?", "what did I ask you?", "what was my previous question?",
    ),
    held_out=("can you repeat what I said?", "tell me what I just said", "what was the last thing I said?"),
)  # fmt: skip
YOU_SAID = Phrases(
    seen=(
        "what did you just say?", "what did you say?", "repeat that", "say that again", "again",
        "can you repeat that?", "pardon?", "again, please", "what was your last answer?",
        "repeat your answer", "repeat your last answer", "once more", "could you say that again?", "what?",
        "I did not hear you", "sorry, what?",
    ),
    held_out=("please say that again", "would you repeat your answer?", "what was your answer?"),
)  # fmt: skip


def draw_recall(rng: Random, split: Split, fillers: tuple[Skill, ...], max_fillers: int = 3) -> Dialogue:
    """Tell one to three things, talk of other matters for up to `max_fillers` turns, then ask for one of them.

    With `max_fillers` 0 it is the two-turn recall of the test: one thing told, and asked for.
    """
    if max_fillers == 0:
        memo, places = _drawn(rng.choice(MEMOS), rng, split)
        return Dialogue((_told(memo, places, rng, split), _recalled(memo, places, rng, split)))
    told = [
        _drawn(memo, rng, split)
        for memo in rng.sample((NAME, rng.choice((COLOR, FAVORITE)), FOOD, HOME, PET, WORD, NUMBER), rng.randint(1, 3))
    ]
    turns = [_told(memo, places, rng, split) for memo, places in told]
    if rng.random() < 0.15:  # the last one said counts
        memo, _ = told[-1]
        told[-1] = _drawn(memo, rng, split)
        turns.append(_told(*told[-1], rng, split))
    for _ in range(rng.randint(0, max_fillers)):
        turns.insert(rng.randint(0, len(turns)), rng.choice(fillers)(rng, split))
    for memo, places in rng.sample(told, rng.randint(1, len(told))):
        turns.append(_recalled(memo, places, rng, split))
    return Dialogue(tuple(turns))


def draw_missing(rng: Random, split: Split, fillers: tuple[Skill, ...]) -> Dialogue:
    """Ask for something that was never told, after other turns or none."""
    asked, other = rng.sample((NAME, NAME, COLOR, FOOD, FAVORITE, HOME, WORD, NUMBER, PET), 2)
    turns = [rng.choice(fillers)(rng, split) for _ in range(rng.randint(0, 2))]
    if other is not asked and rng.random() < 0.5:
        turns.append(_told(*_drawn(other, rng, split), rng, split))
    places = _drawn(asked, rng, split)[1]
    turns.append(Turn(asked.ask.draw(rng, split, **places), asked.missing.format(**places)))
    return Dialogue(tuple(turns))


def draw_echo(rng: Random, split: Split, fillers: tuple[Skill, ...]) -> Dialogue:
    """Ask for what was said last, by the user or by the model."""
    turns = [rng.choice(fillers)(rng, split) for _ in range(rng.randint(1, 3))]
    last = turns[-1]
    if rng.random() < 0.5:
        turns.append(Turn(LAST_SAID.draw(rng, split), f'You said: "{last.user}"'))
    else:
        turns.append(Turn(YOU_SAID.draw(rng, split), f'I said: "{last.answer}"'))
    return Dialogue(tuple(turns))


def ask_name(name: str, rng: Random, split: Split) -> Turn:
    """The question for a user's name, where the system prompt has told it."""
    return _recalled(NAME, {"x": name}, rng, split)


def _drawn(memo: Memo, rng: Random, split: Split) -> tuple[Memo, dict[str, str]]:
    drawn: dict[int, Callable[[], str]] = {
        id(NAME): lambda: draw_name(rng, split),
        id(COLOR): lambda: rng.choice(COLORS),
        id(FOOD): lambda: rng.choice(FOODS),
        id(FAVORITE): lambda: rng.choice((draw_word(rng, split), draw_name(rng, split), rng.choice(PLACES))),
        id(HOME): lambda: rng.choice(PLACES),
        id(PET): lambda: draw_name(rng, split),
        id(WORD): lambda: draw_word(rng, split),
        id(NUMBER): lambda: str(rng.randint(0, rng.choice((9, 99, 999, 9999)))),
    }
    things = _FAVORITE_THINGS if memo is FAVORITE else ANIMALS
    return memo, {"x": drawn[id(memo)](), "a": rng.choice(things)}


def _told(memo: Memo, places: dict[str, str], rng: Random, split: Split) -> Turn:
    case, typed = rng.random(), places["x"]
    if case < 0.12 and typed.istitle():
        typed = typed.lower() if case < 0.1 else typed.upper()
    return Turn(memo.tell.draw(rng, split, **(places | {"x": typed})), memo.noted.format(**places))


def _recalled(memo: Memo, places: dict[str, str], rng: Random, split: Split) -> Turn:
    return Turn(memo.ask.draw(rng, split, **places), memo.recalled.format(**places), places["x"])
