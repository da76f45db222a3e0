"""Stop strings: the text is cut before the first one, however it is split into tokens."""

from __future__ import annotations

import sys
from types import FrameType

from hypothesis import given
from hypothesis import strategies as st

from worker.engine.stop_strings import StopMatcher


def run(stop_strings: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    """Text that each piece releases (a flush last, if nothing stopped), and the stop string found."""
    matcher = StopMatcher(stop_strings)
    released = []
    for piece in pieces:
        text, stop_string = matcher.push(piece)
        released.append(text)
        if stop_string is not None:
            return released, stop_string
    text, stop_string = matcher.flush()
    return [*released, text], stop_string


def cut_at_first(text: str, stop_strings: list[str]) -> str:
    """The text before the stop string that starts first."""
    starts = [start for stop in stop_strings if (start := text.find(stop)) >= 0]
    return text[: min(starts)] if starts else text


def test_without_stop_strings_text_passes() -> None:
    """Nothing is held back."""
    assert run([], ["a", "b"]) == (["a", "b", ""], None)


def test_a_stop_string_across_tokens_is_found() -> None:
    """Its beginning is held back; the token that completes it releases the text before it."""
    assert run(["STOP"], ["xS", "TO", "P and more"]) == (["x", "", ""], "STOP")


def test_text_before_and_after_in_the_same_token() -> None:
    """What follows the stop string in its token is not text."""
    assert run(["STOP"], ["a STOP b"]) == (["a "], "STOP")


def test_the_token_that_disproves_a_match_releases_the_held_text() -> None:
    """And only the part that can no longer become a stop string."""
    assert run(["abc"], ["ab", "ab", "x"]) == (["", "ab", "abx", ""], None)


def test_the_end_releases_what_is_held() -> None:
    """A stop string that never became complete is text."""
    assert run(["STOP"], ["xST"]) == (["x", "ST"], None)


def test_of_equal_start_the_longest_is_reported() -> None:
    """When one token completes both; and the shorter one is not delayed for the longer."""
    assert run(["\n", "\n\n"], ["a\n\nb"]) == (["a"], "\n\n")
    assert run(["\n", "\n\n"], ["a", "\n", "\n"]) == (["a", ""], "\n")


def test_a_match_waits_for_one_that_starts_earlier() -> None:
    """ "bc" is complete after "abc", but "abcd" would start earlier: the next piece decides."""
    assert run(["bc", "abcd"], ["abc", "d"]) == (["", ""], "abcd")
    assert run(["bc", "abcd"], ["abc", "x"]) == (["", "a"], "bc")
    assert run(["bc", "abcd"], ["abc"]) == (["", "a"], "bc")


def test_a_stop_string_that_overlaps_itself_is_found() -> None:
    """The automaton falls back to the longest prefix that is still alive."""
    assert run(["aab"], ["a", "a", "a", "b"]) == (["", "", "a", ""], "aab")


@given(st.data())
def test_the_text_is_cut_at_the_first_stop_for_any_split(draw: st.DataObject) -> None:
    """Joined texts == text cut at the first occurrence, for random stop strings, texts and splits."""
    alphabet = "ab" if draw.draw(st.booleans()) else "abc\u00e9"
    stop_strings = draw.draw(st.lists(st.text(alphabet, min_size=1, max_size=5), max_size=4))
    pieces = draw.draw(st.lists(st.text(alphabet, max_size=6), max_size=12))
    released, stop_string = run(stop_strings, pieces)
    text = "".join(pieces)
    expected = cut_at_first(text, stop_strings)
    assert "".join(released) == expected
    if stop_string is None:
        assert expected == text
    else:
        assert stop_string in stop_strings
        assert text.startswith(stop_string, len(expected))


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.text("ab", max_size=20))
def test_held_text_is_the_least_possible(stop_strings: list[str], text: str) -> None:
    """Fed by the character, nothing is held back that no stop string starts with."""
    matcher = StopMatcher(stop_strings)
    released = ""
    for end, character in enumerate(text, start=1):
        piece, stop_string = matcher.push(character)
        released += piece
        if stop_string is not None:
            return
        held = text[len(released) : end]
        assert not held or any(stop.startswith(held) for stop in stop_strings)


def test_cost_grows_with_the_text_not_with_its_square() -> None:
    """Four times the text takes about four times the calls, for a text that is one long near-match."""
    stop_strings = ["a" * 50 + "b"]

    def num_calls(length: int) -> int:
        matcher = StopMatcher(stop_strings)
        count = 0

        def note(_frame: FrameType, event: str, _arg: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            for _ in range(length):
                matcher.push("a")
        finally:
            sys.setprofile(None)
        return count

    assert num_calls(4000) < 5 * num_calls(1000)
