"""Prompts to token ids within a bound: of what is too long, no more is encoded than it takes to know that."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from service.chat_format import PromptPart


class TooManyTokens(Exception):
    """The prompt is beyond its bound. It reads as the number of its tokens, which may be a least one."""

    def __init__(self, num_tokens: int, *, is_exact: bool) -> None:
        super().__init__(f"{num_tokens} tokens" if is_exact else f"at least {num_tokens} tokens")


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """The ids of a prompt, by the tokenizer of the bundle with this digest."""

    digest: str
    ids: Sequence[int]


class TextEncoder(Protocol):
    """What this needs of a tokenizer."""

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text by itself."""

    def least_tokens(self, text: str) -> int:
        """A lower bound of their number, known at once."""


class BoundedEncoder:
    """Encodes prompts of one tokenizer that may share parts: each different part is encoded once.

    Exact whatever the format, since a part is what is encoded by itself.
    """

    def __init__(self, tokenizer: TextEncoder, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._known: dict[str, list[int]] = {}

    def encode(self, parts: Sequence[PromptPart]) -> list[int]:
        """The ids of a prompt. Raises TooManyTokens, as soon as lengths and what is encoded tell that.

        The last parts are encoded first: those are what prompts share that leave out the oldest turns.
        """
        least = sum(map(self._least_tokens, parts))
        self._check(least, parts)
        encoded: list[Sequence[int]] = []
        for part in reversed(parts):
            guess = self._least_tokens(part)
            ids = self._ids_of(part)
            least += len(ids) - guess
            self._check(least, parts)
            encoded.append(ids)
        return [*chain.from_iterable(reversed(encoded))]

    def _check(self, least: int, parts: Sequence[PromptPart]) -> None:
        if least > self._max_tokens:
            is_exact = all(part in self._known for part in parts if isinstance(part, str))
            raise TooManyTokens(least, is_exact=is_exact)

    def _least_tokens(self, part: PromptPart) -> int:
        if isinstance(part, int):
            return 1
        known = self._known.get(part)
        return self._tokenizer.least_tokens(part) if known is None else len(known)

    def _ids_of(self, part: PromptPart) -> Sequence[int]:
        if isinstance(part, int):
            return (part,)
        if part not in self._known:
            self._known[part] = self._tokenizer.encode_text(part)
        return self._known[part]
