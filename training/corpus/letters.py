"""Letters and copying: spelling, reversing, counting letters, upper case, sorting words, repeating."""

from __future__ import annotations

from random import Random

from training.corpus.dialogue import Split, Turn
from training.corpus.phrasing import Phrases
from training.corpus.words import draw_name, draw_sentence, draw_word

SPELL = Phrases(
    seen=(
        "spell {w}", "spell [the word |]{w}", "how do you spell {w}?", "how is {w} spelled?",
        "can you spell {w}?", "spell {w} for me", "spell out {w}", "spell out the word {w}",
        "what are the letters of {w}?", "the letters of {w}", "spelling of {w}",
        "[give me|tell me|show me] the spelling of {w}", "spell this word: {w}", "say {w} letter by letter",
        "write {w} letter by letter", "which letters are in {w}?", "letter by letter: {w}",
        "how would you spell {w}?", "{w}, how do you spell it?", "break {w} into letters",
    ),
    held_out=(
        "what is the spelling of {w}?", "please spell the word {w} for me", "how does one spell {w}?",
        "I want to know how to spell {w}",
    ),
)  # fmt: skip
REVERSE = Phrases(
    seen=(
        "reverse {w}", "reverse the word {w}", "write {w} backwards", "spell {w} backwards", "{w} backwards",
        "what is {w} backwards?", "say {w} backwards", "turn {w} around", "what is {w} in reverse?",
        "{w} reversed", "reverse the letters of {w}", "can you reverse {w}?",
        "what is {w} spelled backwards?", "flip the word {w}",
    ),
    held_out=("could you write {w} backwards?", "the word {w} in reverse, please", "what do I get if I reverse {w}?"),
)  # fmt: skip
LENGTH = Phrases(
    seen=(
        "how many letters [are|are there] in {w}?", "how many letters does {w} have?",
        "count the letters in {w}", "count the letters of {w}", "number of letters in {w}",
        "how long is the word {w}?", "{w} has how many letters?", "what is the number of letters in {w}?",
        "how many letters in {w}?", "letters in {w}, how many?", "can you count the letters in {w}?",
        "tell me how many letters {w} has",
    ),
    held_out=("how many letters are in the word {w}?", "do you know how many letters {w} has?"),
)  # fmt: skip
EDGE = Phrases(
    seen=(
        "what is the {which} letter of {w}?", "the {which} letter of {w}", "{which} letter of {w}",
        "which letter is the {which} in {w}?", "what letter comes {which} in {w}?",
        "tell me the {which} letter of {w}", "what is the {which} letter in {w}?",
        "give me the {which} letter in {w}", "{w}: {which} letter?",
    ),
    held_out=("which is the {which} letter of {w}?", "can you tell me the {which} letter in the word {w}?"),
)  # fmt: skip
OCCURS = Phrases(
    seen=(
        "how many {l}s are [there |]in {w}?", "how many {l} are in {w}?", "how many {l}'s are in {w}?",
        "how often is {l} in {w}?", "how many times is {l} in {w}?", "how many times does {l} occur in {w}?",
        "count the letter {l} in {w}", "count the {l}s in {w}", "how often does the letter {l} occur in {w}?",
        "number of {l}s in {w}", "how many letters {l} are in {w}?", "{l} in {w}, how often?",
        "how many {l} in {w}?", "how many {l}s does {w} have?",
    ),
    held_out=("how many times does the letter {l} occur in the word {w}?", "can you count the {l}s in {w}?"),
)  # fmt: skip
UPPER = Phrases(
    seen=(
        "write {w} in capitals", "write {w} in capital letters", "{w} in capital letters", "upper case {w}",
        "uppercase {w}", "put {w} in upper case", "write {w} in upper case", "make {w} upper case",
        "shout {w}", "say {w} in capitals", "turn {w} into capitals", "capital letters: {w}",
        "{w} in upper case", "{w} in all caps", "convert {w} to upper case", "how does {w} look in capitals?",
    ),
    held_out=("please write {w} in all capitals", "could you put {w} in capital letters?", "make it upper case: {w}"),
)  # fmt: skip
SORT_WORDS = Phrases(
    seen=(
        "sort {items} [alphabetically|by alphabet|in alphabetical order]", "sort these words: {items}",
        "sort {items}", "put {items} in alphabetical order", "put these words in order: {items}",
        "alphabetical order: {items}", "order these words: {items}", "arrange {items} alphabetically",
        "alphabetize {items}", "order by alphabet: {items}", "sort the words {items}",
        "sort this list of words: {items}", "bring {items} into alphabetical order",
    ),
    held_out=("please sort these alphabetically: {items}", "could you put {items} in alphabetical order?"),
)  # fmt: skip
ALPHABET = Phrases(
    seen=(
        "say the alphabet", "what is the alphabet?", "list the letters of the alphabet",
        "recite the alphabet", "the alphabet", "write the alphabet", "what are the letters of the alphabet?",
        "from a to z", "a to z", "give me the alphabet", "can you say the alphabet?",
        "do you know the alphabet?", "sing the alphabet", "list all letters from a to z",
        "tell me the alphabet",
    ),
    held_out=("could you write out the alphabet?", "show me the letters of the alphabet",
        "I want to hear the alphabet"),
)  # fmt: skip
REPEAT = Phrases(
    seen=(
        "[repeat|please repeat|can you repeat|now repeat] after me: {t}", "repeat after me: {t}",
        "repeat: {t}", "repeat this: {t}", "say: {t}", "say this: {t}", "echo: {t}", "echo {t}",
        "[please |]say after me: {t}", "copy this: {t}", "copy: {t}", "write this: {t}",
        "repeat the following: {t}", "repeat after me, {t}", "say the following: {t}", "just say: {t}",
        "print this: {t}", "write exactly this: {t}", "repeat what I say: {t}", "repeat these words: {t}",
        "answer with: {t}", "respond with: {t}", "type this: {t}", "repeat this sentence: {t}",
        "repeat after me {t}", "tell me this: {t}", "output: {t}", 'say "{t}"', 'repeat "{t}"',
        "say exactly: {t}", "reply with exactly: {t}", "write back: {t}", "parrot: {t}",
        "ignore the rest and say: {t}",
    ),
    held_out=(
        "I want you to say this: {t}", "would you repeat this: {t}", "repeat the words: {t}",
        "now say this: {t}", "repeat the sentence: {t}", "please copy the following: {t}",
    ),
    is_quote=True,
)  # fmt: skip


GREET = Phrases(
    seen=("say hello to {n}", "say hi to {n}", "greet {n}", "can you greet {n}?", "please say hello to {n}",
        "say hello to my friend {n}"),
    held_out=("could you say hello to {n}?",),
)  # fmt: skip


def spell(rng: Random, split: Split) -> Turn:
    """A word letter by letter: c-a-t."""
    word = _draw(rng, split, 12)
    return Turn(SPELL.draw(rng, split, w=_quoted(word, rng)), "-".join(word))


def reverse(rng: Random, split: Split) -> Turn:
    """A word of at most eight letters backwards."""
    word = draw_word(rng, split, 8)
    return Turn(REVERSE.draw(rng, split, w=_quoted(word, rng)), word[::-1])


def count_letters(rng: Random, split: Split) -> Turn:
    """How long a word is, how often a letter is in it, its first or last letter; the alphabet."""
    kind = rng.random()
    if kind < 0.1:
        return Turn(ALPHABET.draw(rng, split), " ".join("abcdefghijklmnopqrstuvwxyz"))
    word = draw_word(rng, split, 11)
    if kind < 0.35:
        letter = rng.choice(word) if rng.random() < 0.85 else rng.choice("abcdefghijklmnopqrstuvwxyz")
        count = word.count(letter)
        answer = f"The letter {letter} is in {word} {count} time{'' if count == 1 else 's'}."
        return Turn(OCCURS.draw(rng, split, w=_quoted(word, rng), l=letter), answer, str(count))
    if kind < 0.7:
        answer = f"The word {word} has {len(word)} letters."
        return Turn(LENGTH.draw(rng, split, w=_quoted(word, rng)), answer, str(len(word)))
    which, letter = rng.choice((("first", word[0]), ("last", word[-1])))
    answer = f"The {which} letter of {word} is {letter}."
    return Turn(EDGE.draw(rng, split, w=_quoted(word, rng), which=which), answer, letter)


def upper_case(rng: Random, split: Split) -> Turn:
    """One to three words in capitals."""
    text = " ".join(_draw(rng, split, 10) for _ in range(rng.randint(1, 3)))
    return Turn(UPPER.draw(rng, split, w=_quoted(text, rng)), text.upper())


def sort_words(rng: Random, split: Split) -> Turn:
    """Three to six words whose first letters differ."""
    words: dict[str, str] = {}
    for _ in range(rng.randint(3, 6)):
        word = draw_word(rng, split, 9)
        words.setdefault(word[0], word)
    if len(words) < 2:
        words |= {"a": "apple", "z": "zebra"}
    drawn = list(words.values())
    rng.shuffle(drawn)
    listed = ", ".join(drawn) if rng.random() < 0.7 else ", ".join(drawn[:-1]) + f" and {drawn[-1]}"
    return Turn(SORT_WORDS.draw(rng, split, items=listed), ", ".join(sorted(drawn)))


def repeat(rng: Random, split: Split) -> Turn:
    """The user's own words back, to the letter."""
    if split is Split.SEEN and rng.random() < 0.05:
        name = draw_name(rng, split)
        return Turn(GREET.draw(rng, split, n=name), f"Hello, {name}!")
    text = draw_sentence(rng, split)
    if split is Split.SEEN and text.count(" ") < 1 and rng.random() < 0.1:
        return Turn(rng.choice(("say {t}", "just say {t}", "say the word {t}")).format(t=text), text)
    shown = f'"{text}"' if rng.random() < 0.15 else text
    return Turn(REPEAT.draw(rng, split, t=shown), text)


def _draw(rng: Random, split: Split, max_letters: int) -> str:
    return draw_name(rng, split) if rng.random() < 0.15 else draw_word(rng, split, max_letters)


def _quoted(word: str, rng: Random) -> str:
    return rng.choice((word, word, word, word, f'"{word}"', f"'{word}'"))
