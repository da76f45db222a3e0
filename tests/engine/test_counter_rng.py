"""The counter RNG: a fixed function of (seed, choice, index), uniform in [0, 1)."""

from __future__ import annotations

import pytest

from worker.engine.counter_rng import Words4, philox4x32, uniform


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        (
            (0, 0, 0, 0),
            (0, 0),
            (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        ),
        (
            (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers(counter: Words4, key: tuple[int, int], expected: Words4) -> None:
    """The known-answer vectors that the paper's authors publish with Random123 (philox4x32, 10 rounds)."""
    assert philox4x32(counter, key) == expected


def test_every_part_of_the_key_and_the_counter_matters() -> None:
    """Seeds that differ in the high word only, choices and indices all give draws of their own."""
    draws = {
        uniform(seed, choice, index)
        for seed in (0, 1, 2**32, 2**64 - 1)
        for choice in (0, 1)
        for index in (0, 1, 2**32)
    }
    assert len(draws) == 4 * 2 * 3


def test_draws_are_uniform() -> None:
    """20,000 draws in 100 bins: chi-square below the 99.9 % quantile of 99 degrees of freedom (148.2)."""
    bins = [0] * 100
    for index in range(20_000):
        draw = uniform(12345, 0, index)
        assert 0 <= draw < 1
        bins[int(draw * 100)] += 1
    assert sum((count - 200) ** 2 / 200 for count in bins) < 148.2


def test_the_largest_draw_is_below_one() -> None:
    """53 one-bits are 1 - 2**-53, which a float64 holds exactly."""
    assert ((0xFFFFFFFF << 21) | (0xFFFFFFFF >> 11)) * 2.0**-53 == 1 - 2.0**-53 < 1
