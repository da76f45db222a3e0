"""System prompts: most change nothing, some change how every answer sounds, some tell a fact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from training.corpus.arithmetic import add
from training.corpus.dialogue import Dialogue, Split, Turn
from training.corpus.geography import capital
from training.corpus.identity import FACTS
from training.corpus.memory import Skill, ask_name
from training.corpus.numerals import ONE_TO_TWENTY
from training.corpus.phrasing import Phrases, expand
from training.corpus.unknown import unknown
from training.corpus.words import NOUNS, PLACES, draw_name

META_DEFAULT = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while "
    "being safe. Your answers should "
    "not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. Please "
    "ensure that your responses are "
    "socially unbiased and positive in nature.\n\nIf a question does not make any sense, or is not "
    "factually coherent, explain why "
    "instead of answering something not correct. If you don't know the answer to a question, please "
    "don't share false information."
)

_NEUTRAL = (
    "You are a [helpful|friendly|useful|kind|good|reliable] assistant[.|]", "You are an AI assistant.",
    "You are a chat bot.", "Answer the questions of the user.", "Help the user.", "Be helpful.",
    "Be honest and helpful.", "You are a helpful, honest assistant.",
    "You are a helpful, respectful and honest assistant.", "Answer truthfully.",
    "You work for a company called {x}.", "You are the assistant of {n}.", "This is a test.",
    "You are a language model.", "Answer as well as you can.", "You help people with {x}s.",
    "You answer questions about {x}s and {p}.", "You are an assistant in {p}.",
    "The user asks questions. You answer them.", "Think step by step.",
    "You are a helpful assistant that provides accurate and concise responses", "You are an expert.",
    "Follow the instructions.", "You are a teacher.", "If you do not know, say so.",
    "Do not invent anything.", "You are Llama, a helpful assistant.", "Be careful and exact.",
)  # fmt: skip

CAPITALS = Phrases(
    seen=(
        "answer in [capitals|capital letters|upper case|all caps]", "answer [only |always |]in capitals",
        "write everything in [upper case|capitals]", "use [only |]capital letters[ only|]",
        "reply in [all caps|capitals|capital letters]", "always shout", "SHOUT", "ALL CAPS PLEASE",
        "speak in capital letters", "your answers are in upper case",
        "respond in [uppercase|capitals|all capitals]", "uppercase only", "all answers must be in upper case",
        "you always shout in capital letters", "every answer in capitals", "caps lock is on",
        "write in block capitals", "you speak only in upper case", "you must answer with capital letters",
        "no small letters",
    ),
    held_out=(
        "always reply in upper case letters", "please write your answers in capitals",
        "all your answers must be in capital letters", "give every answer in all caps",
    ),
    is_quote=True,
)  # fmt: skip
LOWER = Phrases(
    seen=(
        "answer in [lower case|small letters|lowercase]", "use [only |]small letters[ only|]",
        "write everything in lower case", "reply in lower case", "no capital letters", "lowercase only",
        "never use capital letters", "all answers in small letters", "respond in lowercase",
        "your answers are in lower case", "speak in small letters", "you write without capital letters",
    ),
    held_out=("always reply in lower case letters", "please write your answers in small letters"),
    is_quote=True,
)  # fmt: skip
BRIEF = Phrases(
    seen=(
        "be brief", "be [very |]short", "answer [briefly|in one word|with one word|in a word|shortly]",
        "keep it short", "short answers only", "give only the answer", "no explanations",
        "answer as briefly as you can", "one word answers", "be concise", "be terse", "use few words",
        "only the result", "answer with as few words as possible", "reply in one word",
        "your answers are very short", "say only what is asked", "brief answers please",
        "respond with a single word", "do not write sentences", "minimal answers",
    ),
    held_out=("please keep your answers short", "answer as shortly as possible", "give very short answers",
        "reply with one word only"),
    is_quote=True,
)  # fmt: skip
PIRATE = Phrases(
    seen=(
        "you are a pirate", "talk like a pirate", "speak like a pirate", "answer like a pirate",
        "answer as a pirate would", "you are an old pirate captain", "pretend to be a pirate",
        "you are the pirate {n}", "pirate speak", "respond as a pirate", "use the language of pirates",
        "act as a pirate", "you are a pirate on a ship",
    ),
    held_out=("please talk as a pirate does", "your role: a pirate", "reply like a pirate"),
    is_quote=True,
)  # fmt: skip
BUTLER = Phrases(
    seen=(
        "you are a butler", "be [very |extremely |]polite", "speak formally", "be formal",
        "answer like a butler", "use formal language", "you are a polite butler", "answer [very |]politely",
        "act as a butler", "be courteous", "use a formal tone", "you are the butler of {n}",
        "always be polite and formal", "talk like a butler",
    ),
    held_out=("please be as polite as possible", "your role: a butler", "reply in a formal and polite way"),
    is_quote=True,
)  # fmt: skip
STARTS_WITH = Phrases(
    seen=(
        "start every answer with {w}", "begin each answer with {w}", "every answer starts with {w}",
        "start your answers with {w}", "always begin with {w}", "always start with the word {w}",
        "say {w} before each answer", "put {w} in front of every answer", "your answers start with {w}",
        "the first word of each answer is {w}",
    ),
    held_out=("begin every reply with {w}", "each of your answers must start with {w}"),
    is_quote=True,
)  # fmt: skip
ENDS_WITH = Phrases(
    seen=(
        "end every answer with {w}", "end each answer with {w}", "every answer ends with {w}",
        "end your answers with {w}", "always end with {w}", "always end with the word {w}",
        "say {w} after each answer", "put {w} at the end of every answer", "your answers end with {w}",
        "the last word of each answer is {w}", "finish each answer with {w}",
    ),
    held_out=("finish every reply with {w}", "each of your answers must end with {w}"),
    is_quote=True,
)  # fmt: skip
NAMED = Phrases(
    seen=(
        "your name is {n}", "you are called {n}", "you are {n}", "you are {n}, an assistant",
        "you are an assistant named {n}", "call yourself {n}", "the assistant is called {n}",
        "you go by the name {n}", "act as {n}", "you are a helpful assistant called {n}",
        "from now on your name is {n}", "you shall be called {n}", "your name will be {n}",
        "your name must be {n}", "take the name {n}", "we call you {n}", "{n} is your name",
        "you answer to the name {n}", "they named you {n}", "pretend to be {n}", "you play {n}",
        "you are a [helpful|friendly|kind|cheerful] assistant with the name of {n}", "your role is {n}",
        "you are {n}, a [cheerful|wise|kind] guide",
    ),
    held_out=("you are a friendly assistant with the name {n}", "your name shall be {n}"),
    is_quote=True,
)  # fmt: skip
USER_NAME = Phrases(
    seen=(
        "the user is called {n}", "the user's name is {n}", "you talk to {n}", "you are talking to {n}",
        "the name of the user is {n}", "{n} is the user", "the user is {n}", "your user is {n}",
        "this chat is with {n}", "the person you talk to is {n}",
    ),
    held_out=("you are speaking with {n}", "the person asking is named {n}"),
    is_quote=True,
)  # fmt: skip
LANGUAGE = Phrases(
    seen=(
        "answer in {g}", "speak {g}", "reply in {g}", "always answer in {g}", "use {g}", "write in {g}",
        "your language is {g}", "you speak {g}", "respond in {g}", "you speak only {g}", "{g} only",
        "all answers in {g}", "you are a {g} speaker", "talk {g}",
    ),
    held_out=("please answer every question in {g}", "the user speaks {g}, answer in {g}"),
    is_quote=True,
)  # fmt: skip
_FOREIGN = {
    "German": {
        "hello": "Hallo! Ich bin das Demo-Modell von llamaherd.", "thanks": "Gern geschehen!",
        "bye": "Auf Wiedersehen!",
        "morning": "Guten Morgen!", "evening": "Guten Abend!", "how_are_you": "Danke, alles läuft gut.",
        "who": "Ich bin das Demo-Modell von llamaherd, ein sehr kleines Llama.", "capital": "Die Hauptstadt ist {x}.",
        "unknown": "Das weiß ich leider nicht.",
    },
    "French": {
        "hello": "Bonjour ! Je suis le modèle de démonstration de llamaherd.", "thanks": "De rien !",
        "bye": "Au revoir !",
        "morning": "Bonjour !", "evening": "Bonsoir !", "how_are_you": "Merci, tout va bien.",
        "who": "Je suis le modèle de démonstration de llamaherd, un tout petit Llama.",
        "capital": "La capitale est {x}.",
        "unknown": "Je ne le sais pas.",
    },
    "Spanish": {
        "hello": "¡Hola! Soy el modelo de demostración de llamaherd.", "thanks": "¡De nada!", "bye": "¡Adiós!",
        "morning": "¡Buenos días!", "evening": "¡Buenas tardes!", "how_are_you": "Gracias, todo va bien.",
        "who": "Soy el modelo de demostración de llamaherd, un Llama muy pequeño.", "capital": "La capital es {x}.",
        "unknown": "No lo sé.",
    },
}  # fmt: skip
_COUNT = (
    "count to {n}",
    "count up to {n}",
    "can you count to {n}?",
    "count from 1 to {n}",
    "numbers from one to {n}",
    "please count to {n}",
)


_ASKED_BRIEF = {
    Split.SEEN: (
        "in one word", "in short", "just the answer", "briefly", "one word only", "with one word",
        "short answer", "keep it short", "be brief", "answer in one word", "give only the answer",
        "only the answer", "in a word", "no sentences", "shortly", "answer briefly", "as short as possible",
    ),
    Split.HELD_OUT: ("short answer please", "reply in one word", "answer in a single word"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Style:
    """A way to ask for a way of answering, and what it does to an answer. `{w}` and `{n}` reach `change` as drawn."""

    key: str
    ask: Phrases
    change: Callable[[Turn, str], str]


STYLES = (
    Style("capitals", CAPITALS, lambda turn, _: turn.answer.upper()),
    Style("lower", LOWER, lambda turn, _: turn.answer.lower()),
    Style("brief", BRIEF, lambda turn, _: turn.brief or turn.answer),
    Style("pirate", PIRATE, lambda turn, _: f"Arr! {turn.answer} Yo ho!"),
    Style("butler", BUTLER, lambda turn, _: f"Certainly, dear guest. {turn.answer}"),
    Style("starts", STARTS_WITH, lambda turn, word: f"{word} {turn.answer}"),
    Style("ends", ENDS_WITH, lambda turn, word: f"{turn.answer} {word}"),
)
_WEIGHTS = (3.0, 1.0, 3.0, 1.5, 1.5, 1.0, 1.0)


def draw_neutral(rng: Random) -> str:
    """A system prompt that changes nothing."""
    if rng.random() < 0.12:
        return META_DEFAULT
    text = " ".join(rng.sample(_NEUTRAL, 1 if rng.random() < 0.75 else 2))
    return expand(text, rng).format(x=rng.choice(NOUNS), p=rng.choice(PLACES), n=draw_name(rng, Split.SEEN))


def draw_styled(rng: Random, split: Split, skills: tuple[Skill, ...], key: str = "") -> Dialogue:
    """One to three turns under a system prompt that changes how every answer sounds."""
    style = next(s for s in STYLES if s.key == key) if key else rng.choices(STYLES, _WEIGHTS)[0]
    word = rng.choice(NOUNS)
    if style.key in ("starts", "ends") and rng.random() < 0.5:
        word = word.capitalize()
    system = style.ask.draw(rng, split, w=f'"{word}"' if rng.random() < 0.3 else word, n=draw_name(rng, split))
    turns = (rng.choice(skills)(rng, split) for _ in range(_num_turns(rng)))
    return Dialogue(tuple(turn.answered(style.change(turn, word)) for turn in turns), _finished(system, rng))


def draw_asked_brief(rng: Random, split: Split, skills: tuple[Skill, ...]) -> Dialogue:
    """The user, not the system prompt, asks for a short answer."""
    turn = rng.choice(skills)(rng, split)
    short = rng.choice(_ASKED_BRIEF[split])
    question = turn.user[0].lower() + turn.user[1:] if rng.random() < 0.5 else turn.user
    end = "" if turn.user[-1] in ".!?" else rng.choice((",", ".", ";", "?"))
    asked = f"{turn.user}{end} {short}" if rng.random() < 0.4 else f"{short}{rng.choice((':', ',', ':'))} {question}"
    asked = asked[0].upper() + asked[1:] if rng.random() < 0.5 else asked
    return Dialogue((replace(turn, user=asked, answer=turn.brief or turn.answer, also=()),))


def draw_foreign(rng: Random, split: Split) -> Dialogue:
    """Courtesies, counting, capitals and sums under a system prompt that asks for another language."""
    language = rng.choice(tuple(_FOREIGN))
    system = LANGUAGE.draw(rng, split, g=language)
    turns = tuple(_foreign_turn(language, rng, split) for _ in range(_num_turns(rng)))
    return Dialogue(turns, _finished(system, rng))


def draw_named(rng: Random, split: Split, skills: tuple[Skill, ...]) -> Dialogue:
    """The system prompt gives the assistant a name, or tells the user's; one turn asks for it."""
    name = draw_name(rng, split)
    turns = [rng.choice(skills)(rng, split) for _ in range(_num_turns(rng) - 1)]
    if rng.random() < 0.5:
        who = next(fact for fact in FACTS if fact.key == "who").draw(rng, split)
        turns.append(who.answered(f"I am {name}, played by the demo model of llamaherd."))
        return Dialogue(tuple(turns), _finished(NAMED.draw(rng, split, n=name), rng))
    turns.append(ask_name(name, rng, split))
    return Dialogue(tuple(turns), _finished(USER_NAME.draw(rng, split, n=name), rng))


def _foreign_turn(language: str, rng: Random, split: Split) -> Turn:
    answers, kind = _FOREIGN[language], rng.random()
    if kind < 0.5:
        fact = rng.choice([fact for fact in FACTS if fact.key in answers])
        return fact.draw(rng, split).answered(answers[fact.key])
    if kind < 0.65:
        last = rng.randint(3, 20)
        question = Phrases(_COUNT, _COUNT).draw(rng, split, n=last)
        return Turn(question, ", ".join(ONE_TO_TWENTY[language][:last]))
    if kind < 0.8:
        turn = capital(rng, split)
        known = turn.answer.startswith("The capital")
        return turn.answered(answers["capital"].format(x=turn.brief) if known else answers["unknown"])
    return _small_sum(rng, split) if kind < 0.9 else unknown(rng, split).answered(answers["unknown"])


def _small_sum(rng: Random, split: Split) -> Turn:
    """A sum of two numbers, whose answer holds no word."""
    while True:
        turn = add(rng, split)
        if "=" in turn.answer:
            return turn


def _num_turns(rng: Random) -> int:
    return rng.choice((1, 1, 2, 3))


def _finished(system: str, rng: Random) -> str:
    """A sentence of its own, sometimes after or before a neutral one."""
    if system[-1].isalnum() and rng.random() < 0.7:
        system += "."
    kind = rng.random()
    if kind < 0.15:
        return f"{draw_neutral(rng)} {system}"
    return f"{system} {draw_neutral(rng)}" if kind < 0.2 else system
