"""Names, nouns and invented words that the skills draw from."""

from __future__ import annotations

from random import Random

from training.corpus.dialogue import Split


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


NAMES = _split(
    """Ann Anna Ben Carl Clara Dan David Emma Eva Frank Fred George Grace Hana Harry Helen Henry Ida Ian Jack James Jane
    Jim Joe John Julia Karl Kate Laura Leo Lily Lisa Lucy Luke Maria Mark Martin Mary Max Mia Mike Nina Noah Nora Olga
    Oliver Oscar Otto Paul Peter Rosa Ruth Sam Sara Simon Sofia Steve Susan Tim Tom Vera Victor Walter Will Zoe Aisha
    Ali Amir Anil Bao Chen Deepa Fatima Hiro Ibrahim Ines Ivan Jin Jorge Juan Kamal Kofi Lakshmi Lars Leila Li Luca
    Mateo Mei Mohamed Nadia Omar Pablo Pedro Priya Rafael Raj Ravi Rosario Samir Sanjay Sven Tariq Wei Yara Yusuf
    Abigail Adam Albert Alexander Alice Amanda Amelia Andrea Andrew Angela Anthony Arthur Barbara Benjamin Bernard
    Bianca Brian Bruno Carla Carmen Caroline Cecilia Charles Charlotte Chris Christina Claire Claudia Cristina Daniel
    Daniela Deborah Dennis Diana Dominic Dorothy Edith Edward Eleanor Elena Elizabeth Ella Emily Eric Ernest Esther
    Eugene Felix Fiona Florence Francis Gabriel Gloria Gordon Greta Gustav Hannah Harold Hector Hugo Irene Isaac Isabel
    Jacob Janet Jasmine Jason Jennifer Jessica Joanna Jonas Jonathan Joseph Judith Justin Katherine Kenneth Kevin Kurt
    Laila Lara Lawrence Leonard Linda Lorenzo Louis Lydia Manuel Marcus Margaret Marta Matthew Melissa Michael Michelle
    Miriam Monica Natalie Nathan Nicholas Nicole Norman Olivia Patricia Patrick Penelope Philip Quentin Rachel Raymond
    Rebecca Richard Robert Roland Ronald Samuel Sandra Sebastian Sheila Silvia Stella Stephen Teresa Theo Thomas Ursula
    Valerie Vanessa Veronica Vincent Wendy William Yvonne Zara"""
)
HELD_OUT_NAMES = _split(
    """Agnes Bella Boris Camila Cyrus Dora Edgar Elsa Erik Farah Gina Hassan Ingrid Iris Jamal Kira Kwame Lena Magnus
    Marek Gideon Naomi Nikolai Olaf Paula Petra Quinn Ramon Rita Rohan Selma Tara Tobias Uma Viktor Wanda Xavier Yuki
    Zainab Beatrice Clement Harriet Josephine Mildred Reginald Theodora"""
)
ANIMALS = _split(
    """llama fox cat dog horse bear wolf owl mouse rabbit sheep goat cow pig duck goose frog snail bee ant lion tiger
    elephant monkey camel donkey deer hedgehog squirrel crow eagle swan turtle whale dolphin penguin zebra giraffe
    alpaca hen crab beaver otter"""
)
COLORS = _split("red blue green yellow black white brown orange purple pink grey silver gold violet turquoise")
FOODS = _split(
    """bread rice soup pizza pasta cheese cake salad apples pears bananas grapes oranges potatoes beans noodles fish
    pancakes honey chocolate cookies tomatoes carrots plums cherries dumplings curry tacos"""
)
PLACES = _split(
    """Paris London Berlin Rome Madrid Vienna Oslo Lisbon Boston Chicago Toronto Sydney Mumbai Tokyo Seoul Lima Cairo
    Nairobi Lagos Dublin Prague Athens Munich Hamburg Milan Barcelona Lyon Leeds Austin Denver Seattle Osaka Delhi
    Karachi Manila Jakarta Bogota Quito Havana Porto Geneva Zurich Krakow Glasgow Utrecht Antwerp"""
)
NOUNS = _split(
    """apple bag ball bank bell bird boat book bottle box bread bridge brush bucket bus button cake candle car card
    carpet chair child church city clock cloud coat coin cup dance desk door dream dress drum ear egg eye face farm
    field fire fish flag floor flower foot forest fork friend fruit game garden gate gift glass glove gold grass group
    hair hand hat head heart hill home honey house ice island job juice key king kitchen knife ladder lake lamp leaf
    leg lemon letter light line lock machine map market mask meal milk mirror money moon morning mountain mouth music
    nail name neck needle nest night nose number nut ocean office oil onion orange oven page paint paper park pen
    pencil people pepper picture pillow plane plant plate pocket poem potato queen question radio rain ring river road
    rock roof room root rope rose salt sand school sea seat seed ship shirt shoe shop silver sister sky snow soap song
    spoon spring square star station stone storm story street sugar summer sun table tea teacher thread ticket tiger
    tooth tower town toy train tree triangle truck umbrella valley village violin voice wagon wall watch water wheel
    window winter wire wood wool word work yard year zebra computer science history language elephant mushroom
    butterfly strawberry rainbow kangaroo chocolate dinosaur hospital library mountain notebook pineapple sandwich
    telephone university vegetable waterfall yesterday adventure crocodile dictionary"""
)
ADJECTIVES = _split(
    """small big old young red blue green happy sad quiet loud warm cold quick slow bright dark round soft hard new
    clean wild kind brave funny heavy light sweet tall tiny lazy busy clever strange golden"""
)
VERBS_PAST = _split(
    """saw found liked made bought sold lost took kept painted carried washed opened closed broke fixed loved moved
    watched cooked"""
)
# Words whose letters a visitor may ask for: the nouns above and much else that occurs in the dialogues.
WORDS = (
    *NOUNS, *ANIMALS, *COLORS, *FOODS, *ADJECTIVES, *VERBS_PAST,
    *_split(
        """llamaherd herd llama gateway worker token tokens stream streaming redis model demo quantization tokenizer
            prompt answer
    hello hi world name capital count number story sum add word letter day month year time hour minute today tomorrow
    monday tuesday
    wednesday thursday friday saturday sunday january february march april june july august september october
    november december
    one two three four five six seven eight nine ten eleven twelve twenty hundred thousand what which where when who
    why how
    the and of to in is are you your my me we they he she it this that not yes no please thanks thank good great help
    tell say
    repeat spell reverse write read speak think know learn remember forget begin start end stop come go make take
    give find
    before after between under over near far left right north south east west up down first last next long short
    mississippi
    banana pepper coffee balloon committee bookkeeper level radar noon racecar success address occurrence parallel
    necessary
    python rust java linux server client network memory graphics processor keyboard internet database algorithm function
    europe asia africa america oceania france germany italy spain japan china india brazil canada mexico egypt kenya"""
    ),
)  # fmt: skip

_ONSETS = (
    "b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z", "br", "ch", "cl", "dr",
    "fl", "gr", "kr", "ph", "pl", "sh", "st", "th", "tr", "qu", "x", "y", "",
)  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "u", "ai", "ee", "ia", "oo", "ou", "y", "io", "ae")
_CODAS = ("", "", "", "n", "r", "s", "l", "m", "t", "d", "k", "x", "ng", "ck", "th", "nd", "rt", "p", "ss", "v", "z")


_SCRIPTS = (
    "äöüßéèêàçñáíóúîôû", "αβγδεζηθλμνξπρστφχψω", "абвгдежзийклмнопрстуфхцчшщыэюя",
    "你好世界我是小羊一二三四五天地人水火山", "こんにちはありがとう", "안녕하세요감사", "שלוםתודה",
    "مرحباشكرا", "नमस्तेधन्यवाद", "🦙🐑🐐🦊🐻🌍🌙⭐🔥🎉👍❤😀🤖🚀", "€£¥§±×÷≤≥≠→←↑↓∞√",
)  # fmt: skip


def invented_word(rng: Random, max_syllables: int = 3) -> str:
    """A pronounceable lower-case word that nobody has trained on for sure."""
    count = rng.randint(1, max_syllables)
    word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count))
    return word if len(word) > 2 else word + "la"


def draw_name(rng: Random, split: Split) -> str:
    """A person's name: held-out names in the test, and invented ones beside the real ones in training."""
    if split is Split.HELD_OUT:
        return rng.choice(HELD_OUT_NAMES)
    if rng.random() < 0.45:
        return rng.choice(NAMES)
    name = invented_word(rng).capitalize()
    return name if name not in HELD_OUT_NAMES else "Nobody"


def draw_word(rng: Random, split: Split, max_letters: int = 14) -> str:
    """A common noun or an invented word of at most `max_letters` letters; in training also any other word."""
    while True:
        is_common = rng.random() < (0.55 if split is Split.SEEN else 0.8)
        word = (
            rng.choice(WORDS if split is Split.SEEN and rng.random() < 0.7 else NOUNS)
            if is_common
            else invented_word(rng)
        )
        if len(word) <= max_letters:
            return word


def draw_sentence(rng: Random, split: Split) -> str:
    """A short sentence, a run of loose words or odd signs, for repeating and remembering."""
    kind = rng.random()
    if kind < 0.22:
        return draw_odd_text(rng)
    if kind < 0.55:
        name = draw_name(rng, split)
        noun, other = rng.choice(NOUNS), rng.choice(NOUNS)
        text = rng.choice(
            (
                f"the {rng.choice(ADJECTIVES)} {noun} is {rng.choice(ADJECTIVES)}",
                f"{name} {rng.choice(VERBS_PAST)} a {rng.choice(ADJECTIVES)} {noun}",
                f"my {noun} and your {other}",
                f"we {rng.choice(VERBS_PAST)} the {noun} near the {other}",
                f"I {rng.choice(VERBS_PAST)} {rng.randint(2, 99)} {noun}s in {rng.choice(PLACES)}",
                f"{rng.choice(ADJECTIVES)} {noun}, {rng.choice(ADJECTIVES)} {other}",
                f"the {noun} {rng.choice(VERBS_PAST)} {name}",
            )
        )
    elif kind < 0.9:
        text = " ".join(draw_word(rng, split) for _ in range(rng.randint(1, 6)))
    else:
        text = " ".join(str(rng.randint(0, 999)) for _ in range(rng.randint(1, 5)))
    if rng.random() < 0.4:
        text = text[0].upper() + text[1:]
    return text + rng.choice(("", "", "", ".", "!"))


def draw_odd_text(rng: Random) -> str:
    """Punctuation, code, keys hit at random, accents, other scripts and emoji: what byte fallback is there for."""
    kind = rng.random()
    if kind < 0.35:
        words = [
            rng.choice((rng.choice(NOUNS), invented_word(rng), str(rng.randint(0, 999))))
            for _ in range(rng.randint(2, 7))
        ]
        return "".join(
            word + rng.choice((" ", " ", " ", ", ", " & ", " - ", "/", ": ", "; ", " + ", "_", ". ", " = "))
            for word in words[:-1]
        ) + (words[-1] if rng.random() < 0.6 else f"({words[-1]})" + rng.choice(("", "!", "?", "...")))
    if kind < 0.55:
        return draw_keys(rng)
    script = rng.choice(_SCRIPTS)
    text = "".join(rng.choice(script) for _ in range(rng.randint(1, 8)))
    return text if rng.random() < 0.6 else f"{rng.choice(NOUNS)} {text}{rng.choice(('', ' ' + rng.choice(NOUNS)))}"


def draw_keys(rng: Random) -> str:
    """Keys hit at random."""
    keys = rng.choice(
        ("abcdefghijklmnopqrstuvwxyz", "asdfghjkl", "qwertyuiop", "0123456789abcdef", "xyz.,-+*/!?#$%&()<>=[]{}@~")
    )
    text = "".join(rng.choice(keys) for _ in range(rng.randint(2, 12)))
    return text.replace("{", "(").replace("}", ")")
