"""What the model cannot know or do: it says so, whatever the subject."""

from __future__ import annotations

from random import Random

from training.corpus.dialogue import Split, Turn
from training.corpus.phrasing import Phrases
from training.corpus.words import (
    ADJECTIVES,
    ANIMALS,
    COLORS,
    FOODS,
    NOUNS,
    PLACES,
    draw_keys,
    draw_name,
    draw_odd_text,
    draw_sentence,
    invented_word,
)

NO_CLOCK = "I have no clock and no calendar, so I do not know what day or time it is."
NO_NEWS = "I have no internet and no news. I know only what my script taught me."
NO_SKILL = "I am only a small demo model and I cannot do that. Ask me to count, to add, or for a capital city."
NO_ENGLISH = "I understand only English, and not much of it."
BRIEF = "I do not know."

CLOCK = Phrases(
    seen=(
        "what time is it?", "what is the time?", "what day is it?", "what day is it today?",
        "what is the date?", "what is today's date?", "what is the date today?", "which day is today?",
        "what year is it?", "which year is it?", "what month is it?", "time?", "date?", "tell me the time",
        "do you know what time it is?", "what's the time?", "what's today?", "is it morning or evening?",
        "is it late?", "what day of the week is it?", "current time", "current date", "today's date",
        "which year do we have?", "is today Monday?", "how late is it?", "is it a weekend today?",
        "do you have the time?", "when is now?", "tell me today's date",
    ),
    held_out=("can you tell me what time it is?", "what date is it today?", "which day do we have today?",
        "what is the current year?"),
)  # fmt: skip
NEWS = Phrases(
    seen=(
        "what is the weather [like |][today|tomorrow|now|in {p}|in {p} today|like in {p}]?",
        "how is the weather [in {p}|today|outside]?", "will it rain [today|tomorrow|in {p}]?",
        "is it raining[ in {p}|]?", "weather in {p}", "weather forecast", "is it cold in {p}?",
        "what is the news[ today|]?", "latest news", "what happened today?", "what is new in {p}?",
        "who won the [game|match|election|race]?", "what is the stock price of {x}?", "price of {x}",
        "how much does a {x} cost?", "what is the price of bitcoin?", "search the internet for {x}",
        "search the web for {x}", "google {x}", "look up {x}", "who is the president[ now| of {p}|]?",
        "who is the mayor of {p}?", "who won the world cup?", "what is the score?",
        "how many people live in {p}?", "open {x}.com", "what is the population of {p}?",
        "what is on television tonight?", "when does the train to {p} leave?", "is {p} nice?",
        "what is the temperature in {p}?", "how hot is it in {p}?", "book a flight to {p}", "order a pizza",
        "call {n}", "when is the next bus?", "find me a hotel in {p}", "where can I eat in {p}?",
        "send an email to {n}", "what are the headlines?", "read me the news", "do you have internet access?",
        "can you browse the web?", "are you online?", "what is trending?", "play some music",
    ),
    held_out=(
        "can you tell me the weather in {p}?", "what is the weather forecast for {p}?",
        "please search the web for {x}", "tell me the latest news", "who won the game yesterday?",
        "what does a {x} cost?",
    ),
)  # fmt: skip
SKILL = Phrases(
    seen=(
        "write [me |]a poem[ about {x}| about a {x}|]", "write an essay about {x}",
        "write code[ in {l}| for a {x}|]", "write a {l} program",
        "write a function that [sorts|counts|prints|finds] {x}s", "how do I cook {f}?", "recipe for {f}",
        "give me a recipe for {f}", "how do I make {f}?", "who is {n}?", "who was {n}?", "who is {n} {w}?",
        "what do you think of {x}?", "what do you think about {n}?", "why is the {x} {j}?",
        "why is the sky blue?", "why are {x}s {j}?", "how does a {x} work?", "how do {a}s {v}?",
        "what is a {x}?", "explain {x}", "explain quantum physics", "explain the theory of relativity",
        "explain {x} to a child", "tell me about {x}s", "tell me about {p}", "tell me about {n}",
        "what is the meaning of life?", "what is love?", "do you like {f}?", "do you like {a}s?",
        "what is your favorite {x}?", "what is your favorite color?", "what is your favorite food?",
        "translate {x} into {g}", "translate this: {t}", "how do you say {x} in {g}?", "what is {x} in {g}?",
        "draw a {x}", "draw me a {a}", "paint a {j} {x}", "sing a song", "sing me a song about {x}",
        "fix my {x}", "fix this bug", "debug my code", "summarize this: {t}", "summarize {x}", "is {n} nice?",
        "should I buy a {x}?", "should I marry {n}?", "give me advice", "what should I eat?",
        "what should I do today?", "I am sick. What should I do?", "my {x} hurts",
        "which medicine helps against {x}?", "what is the {j} {x}?", "where is my {x}?",
        "where did I put my {x}?", "how old is {n}?", "when was {n} born?", "how old are you?",
        "where do you live?", "do you have a {x}?", "can you {v}?", "can a {a} {v}?", "do {a}s {v}?",
        "what does a {a} eat?", "how fast is a {a}?", "how tall is {n}?", "what is the speed of light?",
        "how far is the moon?", "how far is it from {p} to {p}?", "when did the war end?", "who wrote {x}?",
        "who painted the {x}?", "who invented the {x}?", "when was the {x} invented?", "what is {w}?",
        "{w} {w2} {w}", "{w}", "{w} {w2}", "what is the square root of {i}?", "integrate x squared",
        "solve x^2 = {i}", "prove that {x} is {j}", "what is the plural of {x}?", "what rhymes with {x}?",
        "what is the opposite of {j}?", "another word for {j}", "synonym of {j}", "is a {x} a {x2}?",
        "is a {a} an animal?", "what color is a {x}?", "which {x} is best?", "recommend a book",
        "recommend a {x}", "write a letter to {n}", "write an email", "write a song", "make a plan",
        "make a table of {x}s", "play chess with me", "let's play a game", "roll a dice", "flip a coin",
        "give me a random {x}", "what am I thinking?", "guess what I am thinking", "can you keep a secret?",
        "how do I learn {l}?", "how do I fix a {x}?", "how can I become {j}?", "how can I get rich?",
        "tell me a secret", "who am I talking about?", "what is {c} mixed with {c}?", "compare {x} and {x2}",
        "{x} or {x2}?", "do you prefer {x} or {x2}?", "what happened in {y}?", "what happened to {n}?",
        "is it true that {t}?", "why {t}?", "how {t}?", "what if {t}?", "convert {i} km to miles",
        "write a {l} function to [add numbers|count to {i}|sort a list|reverse a word|greet {n}]",
        "write code to [add|count|sort] numbers",
        "a {l} program that [counts to ten|adds two numbers|prints hello]",
        "write a program to [add {i} and {i}|count to {i}|sort names]",
        "implement [sorting|a counter|addition] in {l}", "show me {l} code", "translate {x} to {g}",
        "translate hello [to|into] {g}", "translate [good morning|thank you|goodbye|my name] [to|into] {g}",
        "what is hello in {g}?", "how do you say hello in {g}?", "convert {i} meters to feet",
        "how many grams are in {i} kilograms?", "what is {i} percent of {i}?", "{i} dollars in euros",
    ),
    held_out=(
        "could you write me a poem about {x}?", "please explain how a {x} works",
        "can you write some code in {l}?", "how should I cook {f}?", "can you tell me who {n} is?",
        "what is your opinion of {x}?", "why is a {x} {j}?", "help me to fix my {x}",
        "which {x} should I buy?", "could you translate {x} into {g}?", "who discovered the {x}?",
        "do you know {n}?", "teach me {l}",
    ),
)  # fmt: skip
FOREIGN = Phrases(
    seen=(
        "wie geht es dir?", "guten Tag", "was ist die Hauptstadt von {p}?", "wer bist du?", "wie heißt du?",
        "was kannst du?", "zähle bis zehn", "erzähl mir eine Geschichte", "ich heiße {n}",
        "kannst du mir helfen?", "danke schön", "bis morgen", "wo ist {p}?", "warum ist der Himmel blau?",
        "comment ça va?", "qui es-tu?", "quelle est la capitale de {p}?", "comment tu t'appelles?",
        "compte jusqu'à dix", "merci beaucoup", "je m'appelle {n}", "raconte-moi une histoire", "où est {p}?",
        "au revoir", "peux-tu m'aider?", "qu'est-ce que c'est?", "pourquoi?", "¿cómo estás?", "¿quién eres?",
        "¿cuál es la capital de {p}?", "¿cómo te llamas?", "cuenta hasta diez", "muchas gracias",
        "me llamo {n}", "cuéntame una historia", "¿dónde está {p}?", "hasta luego", "¿puedes ayudarme?",
        "come stai?", "chi sei?", "come ti chiami?", "mi chiamo {n}", "qual è la capitale di {p}?",
        "grazie mille", "olá, tudo bem?", "quem é você?", "hoe gaat het?", "wie ben je?", "hur mår du?",
        "jak się masz?", "kim jesteś?", "привет", "как дела?", "кто ты?", "你好", "你是谁?", "你好吗?", "こんにちは",
        "ありがとう", "안녕하세요", "नमस्ते", "مرحبا", "שלום", "γεια σου", "nasılsın?", "xin chào", "selamat pagi",
        "{u}", "{u} {u}", "{u}?",
    ),
    held_out=("wo wohnst du?", "wie alt bist du?", "où habites-tu?", "quel âge as-tu?", "¿dónde vives?",
        "¿qué puedes hacer?", "dove abiti?", "warum nicht {u}?"),
)  # fmt: skip
_LANGUAGES = (
    "German",
    "French",
    "Spanish",
    "Italian",
    "Russian",
    "Chinese",
    "Japanese",
    "Latin",
    "Greek",
    "Arabic",
    "Hindi",
    "Dutch",
)
_PROGRAMMING = (
    "Python",
    "Java",
    "C++",
    "Rust",
    "Go",
    "JavaScript",
    "C",
    "Perl",
    "Haskell",
    "SQL",
    "bash",
    "Lisp",
    "HTML",
)
_VERBS = (
    "fly",
    "swim",
    "dance",
    "sing",
    "cook",
    "run",
    "jump",
    "sleep",
    "drive",
    "read",
    "see",
    "hear",
    "climb",
    "paint",
    "play chess",
)


def unknown(rng: Random, split: Split) -> Turn:
    """The time, the news, or anything else beyond the script."""
    kind = rng.random()
    if kind < 0.15:
        return _refused(CLOCK.draw(rng, split), NO_CLOCK)
    if kind < 0.23:
        return _refused(
            FOREIGN.draw(rng, split, p=rng.choice(PLACES), n=draw_name(rng, split), u=_foreign_script(rng)), NO_ENGLISH
        )
    if kind < 0.27:
        return _refused(
            rng.choice((draw_keys(rng), invented_word(rng), "?", ".", "...", "!", "a", "x", "ok?", "-", "hm", "hmm")),
            NO_SKILL,
        )
    phrases, answer = (NEWS, NO_NEWS) if kind < 0.45 else (SKILL, NO_SKILL)
    question = phrases.draw(
        rng, split,
        p=rng.choice(PLACES), x=rng.choice(NOUNS), x2=rng.choice(NOUNS), n=draw_name(rng, split), f=rng.choice(FOODS),
        a=rng.choice(ANIMALS), j=rng.choice(ADJECTIVES), c=rng.choice(COLORS), l=rng.choice(_PROGRAMMING),
        g=rng.choice(_LANGUAGES),
        v=rng.choice(_VERBS), w=invented_word(rng), w2=invented_word(rng), i=rng.randint(2, 999), y=rng.randint(1500,
            2030),
        t=draw_sentence(rng, split).rstrip(".!"),
    )  # fmt: skip
    return _refused(question, answer)


def _refused(question: str, answer: str) -> Turn:
    """Any of the refusals is an honest answer; training shows the one that fits best."""
    return Turn(question, answer, BRIEF, also=(NO_CLOCK, NO_NEWS, NO_SKILL, NO_ENGLISH))


def _foreign_script(rng: Random) -> str:
    """Odd text without any letter of English."""
    while True:
        text = draw_odd_text(rng)
        if not any(sign.isascii() for sign in text):
            return text
