"""A value has the type that its field is annotated with, or the field is named."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from contract.typed import MAX_INT, misfit


@dataclass(frozen=True)
class Record:
    """One field of every kind that our messages have."""

    count: int = 3
    number: float = 0.5
    text: str = "héllo"
    flag: bool = True
    ids: tuple[int, ...] = (1, 2, MAX_INT)
    texts: tuple[str, ...] = ("a", "b")
    pairs: tuple[tuple[int, float], ...] = ((7, -1.5), (8, 2))
    words: Mapping[str, str] = field(default_factory=lambda: {"traceparent": "00"})


@pytest.mark.parametrize(
    "good",
    [{}, {"count": 0}, {"number": 2}, {"number": -2.5}, {"ids": ()}, {"texts": ()}, {"pairs": ()}, {"words": {}}],
)
def test_a_value_of_its_type_fits(good: dict[str, Any]) -> None:
    """Empty runs do too, and a float that JSON has written as a whole number."""
    assert misfit(replace(Record(), **good)) is None


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("count", -1),
        ("count", MAX_INT + 1),
        ("count", True),
        ("count", 1.0),
        ("number", float("nan")),
        ("number", float("inf")),
        ("number", "1"),
        ("number", False),
        ("text", b"hello"),
        ("text", None),
        ("flag", 1),
        ("ids", [1, 2]),
        ("ids", (1, -2)),
        ("ids", (1, MAX_INT + 1)),
        ("ids", (1, True)),
        ("ids", (1, 2.0)),
        ("ids", (1, "2")),
        ("ids", None),
        ("ids", 7),
        ("ids", ""),
        ("texts", ("a", 1)),
        ("texts", "ab"),
        ("pairs", ((7, 1.5, 2),)),
        ("pairs", ((7,),)),
        ("pairs", ((7.5, 1.5),)),
        ("pairs", (7, 1.5)),
        ("words", {"a": 1}),
        ("words", {1: "a"}),
        ("words", (("a", "b"),)),
    ],
)
def test_a_value_of_another_type_names_its_field(name: str, bad: Any) -> None:
    """A boolean is no number, and a list no tuple."""
    assert misfit(replace(Record(), **{name: bad})) == name


@pytest.mark.parametrize(("name", "bad"), [("text", "\ud800"), ("texts", ("a", "\ud800")), ("words", {"a": "\ud800"})])
def test_a_text_that_cannot_be_encoded_is_an_error(name: str, bad: Any) -> None:
    """JSON can hold half a character; who parses turns any error into MalformedMessage."""
    with pytest.raises(UnicodeEncodeError):
        misfit(replace(Record(), **{name: bad}))
