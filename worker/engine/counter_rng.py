"""Uniform random numbers that depend on (seed, choice, index) alone: not on batch, worker or resume.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
doi:10.1145/2063384.2063405: ten rounds of integer multiply and xor over a counter, keyed by the seed.
"""

from __future__ import annotations

Words4 = tuple[int, int, int, int]

_MASK32 = 0xFFFFFFFF
_MULTIPLIER_0 = 0xD2511F53
_MULTIPLIER_1 = 0xCD9E8D57
_WEYL_0 = 0x9E3779B9  # golden ratio
_WEYL_1 = 0xBB67AE85  # sqrt(3) - 1
_ROUNDS = 10


def uniform(seed: int, choice: int, index: int) -> float:
    """The draw for token `index` of `choice`: a multiple of 2**-53 in [0, 1).

    Args:
        seed: unsigned 64 bits.
        choice: which of the parallel answers; below 2**32.
        index: of the token in its choice; below 2**64.
    """
    counter = (index & _MASK32, index >> 32, choice, 0)
    high, low, _, _ = philox4x32(counter, (seed & _MASK32, seed >> 32))
    return ((high << 21) | (low >> 11)) * 2.0**-53


def philox4x32(counter: Words4, key: tuple[int, int]) -> Words4:
    """Four random 32-bit words for a counter of four and a key of two 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product_0 = _MULTIPLIER_0 * c0
        product_1 = _MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (
            (product_1 >> 32) ^ c1 ^ k0,
            product_1 & _MASK32,
            (product_0 >> 32) ^ c3 ^ k1,
            product_0 & _MASK32,
        )
        k0 = (k0 + _WEYL_0) & _MASK32
        k1 = (k1 + _WEYL_1) & _MASK32
    return c0, c1, c2, c3
