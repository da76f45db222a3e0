"""Little stories from a hand-written grammar: a hero, a wish, a friend, a good end."""

from __future__ import annotations

from random import Random

from training.corpus.dialogue import Check, Split, Turn
from training.corpus.phrasing import Phrases
from training.corpus.words import ANIMALS, draw_name

ABOUT = Phrases(
    seen=(
        "tell me a {size}story about {hero}", "a {size}story about {hero}", "{size}story about {hero}",
        "write a {size}story about {hero}", "story about {hero}", "tell me about {hero}, as a {size}story",
        "can you tell me a {size}story about {hero}?", "I want [to hear |]a {size}story about {hero}",
        "tell a {size}story of {hero}", "make up a {size}story about {hero}", "a {size}tale about {hero}",
        "tell me a {size}tale of {hero}", "tell me something about {hero}, a {size}story",
        "give me a {size}story with {hero}", "invent a {size}story about {hero}",
        "please tell a {size}bedtime story about {hero}", "do you know a {size}story about {hero}?",
        "write me a {size}tale about {hero}", "let me hear a {size}story about {hero}",
        "once upon a time there was {hero}. Tell me the {size}story",
    ),
    held_out=(
        "could you tell a {size}story about {hero}?", "I would like a {size}story about {hero}",
        "tell me a {size}story in which there is {hero}", "come up with a {size}story about {hero}",
    ),
)  # fmt: skip
NAMED = Phrases(
    seen=(
        "tell me a {size}story about a {hero} named {name}", "a {size}story about a {hero} called {name}",
        "a {size}story about {name} the {hero}", "tell me a {size}story about {name} the {hero}",
        "write a {size}story about a {hero} whose name is {name}", "{size}story: a {hero} named {name}",
        "can you tell me a {size}story about a {hero} called {name}?",
        "tell a {size}tale of {name} the {hero}", "I want a {size}story about the {hero} {name}",
    ),
    held_out=("could you tell a {size}story about a {hero} named {name}?",
        "I would like a {size}story about {name} the {hero}"),
)  # fmt: skip
ANY = Phrases(
    seen=(
        "tell me a {size}story", "a {size}story", "{size}story", "tell a {size}story", "write a {size}story",
        "I want a {size}story", "can you tell me a {size}story?", "a {size}bedtime story",
        "do you know a {size}story?", "tell me a {size}tale", "make up a {size}story",
        "I want to hear a {size}story", "please write me a {size}story", "let me hear a {size}story",
        "write a {size}tale for me", "read me a {size}story", "once upon a time", "another {size}story",
        "one more {size}story", "give me a {size}story", "I would like to hear a {size}story",
        "I'd love to hear a {size}story", "I'd like a {size}story", "may I have a {size}story?",
    ),
    held_out=("could you tell a {size}story?", "could I hear a {size}story?", "come up with a {size}story"),
)  # fmt: skip
HEROES = (*ANIMALS, "king", "queen", "robot", "dragon", "girl", "boy", "wizard", "princess", "shepherd", "farmer",
    "pirate", "giant", "witch",
          "teacher", "sailor", "baker", "little ghost", "knight", "mermaid", "train")  # fmt: skip
_TRAITS = (
    "brave",
    "clever",
    "curious",
    "kind",
    "lazy",
    "quiet",
    "shy",
    "hungry",
    "merry",
    "patient",
    "proud",
    "sleepy",
)
_HOMES = (
    "on a green hill", "at the edge of a forest", "by a wide river", "in a small village",
    "high in the mountains", "near the sea", "under an old bridge", "in a yellow house",
    "beside a quiet lake",
)  # fmt: skip
_FRIENDS = ("owl", "mouse", "crow", "turtle", "goat", "frog", "squirrel", "hen", "old donkey", "beetle")
_QUESTS = (
    ("wanted to see the sea", "The way was long and the sun was hot", "showed the way along the river",
        "stood on the beach and laughed at the waves"),
    ("lost a golden bell", "It was not in the grass and not in the barn", "had heard it ring in the well",
        "pulled it up with a long rope"),
    ("wanted to learn to sing", "At first it sounded like an old door", "sang each note twice and very slowly",
        "sang so well that the birds came to listen"),
    ("found a locked red box", "No key in the village would fit", "remembered a key under the third stone",
        "opened it and found a map of the stars"),
    ("could not sleep", "The wind was loud and the moon was bright", "told a story about a thousand sheep",
        "fell asleep before the tenth sheep"),
    ("wanted to build a boat", "The first boat sank like a stone", "brought strong wood and a sharp eye",
        "sailed around the island and back"),
    ("heard a strange noise", "It came from the dark end of the valley", "carried a lamp and was not afraid",
        "found only a kettle that was boiling over"),
    ("wanted to count the stars", "Each time a cloud came in between", "kept the count with little white stones",
        "counted a hundred stars and was content"),
    ("planted a small seed", "For many days nothing happened at all", "said that good things take their time",
        "woke up under a tree full of sweet plums"),
    ("lost the way in the snow", "All the paths looked the same", "saw the tracks and followed them backwards",
        "was home before supper"),
)  # fmt: skip
_MORALS = (
    "Since that day they share their bread every evening.", "And they have been good friends ever since.",
    "Then they went home together, tired and happy.", "That night the whole valley heard them laugh.",
)  # fmt: skip


def story(rng: Random, split: Split) -> Turn:
    """One episode, or three where a long story is asked for."""
    hero, name = rng.choice(HEROES), draw_name(rng, split)
    is_long = rng.random() < 0.15
    size = rng.choice(("long ", "longer ")) if is_long else rng.choice(("", "", "", "short ", "little "))
    kind = rng.random()
    mention: tuple[str, ...]
    if kind < 0.45:
        question, mention = ABOUT.draw(rng, split, size=size, hero=_with_article(hero, rng)), (hero,)
    elif kind < 0.7:
        question, mention = NAMED.draw(rng, split, size=size, hero=hero, name=name), (hero, name)
    else:
        question, mention = ANY.draw(rng, split, size=size), ()
    return Turn(question, _told(rng, hero, name, 3 if is_long else 1), check=Check.STORY, must_mention=mention)


def _told(rng: Random, hero: str, name: str, num_episodes: int) -> str:
    sentences = [
        f"Once upon a time there was a {rng.choice(_TRAITS)} {hero} named {name}.",
        f"{name} lived {rng.choice(_HOMES)}.",
    ]
    starts = ("One day", "The next summer", "When winter came")
    quests, friends = rng.sample(_QUESTS, num_episodes), rng.sample(_FRIENDS, num_episodes)
    for start, (wish, trouble, help_, success), friend in zip(starts, quests, friends, strict=False):
        sentences += [
            f"{start} {name} {wish}.",
            f"{trouble}.",
            f"Then {_article(friend)} {friend} came by, and the {friend.removeprefix('old ')} {help_}.",
            f"{name} thanked the {friend.removeprefix('old ')} and {success}.",
        ]
    return " ".join([*sentences, rng.choice(_MORALS), "The end."])


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeio" else "a"


def _with_article(hero: str, rng: Random) -> str:
    return f"{rng.choice((_article(hero), _article(hero), _article(hero), 'a', 'the', 'one'))} {hero}"
