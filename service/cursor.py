"""How far one reader is in one generation's log, and what an entry adds to it. No Redis, no asyncio.

Entries come from the log, which is the truth, or from the inbox, which is a hint: a row may be missing, doubled, late,
or from before the log lost its tail. The chain tells whether an entry continues what was taken.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from contract.messages import CHAIN_START, AttemptMark, ChoiceEnd, Ending, Job, LogEntry, TokenRow, decode_tokens
from llamaherd.v1 import common_pb2, generation_pb2
from service import events


class Disagreement(Exception):
    """The entry does not continue what was taken so far."""


class MissingMark(Disagreement):
    """An attempt before the one at hand was not told: its mark stands further back in the log."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A serialized message; tokens may be joined by concatenation, anything else is a message of its own."""

    body: bytes
    is_tokens: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Where a cursor stood; `Cursor.go_back` returns to it."""

    position: int = 0
    attempt: int = 0
    told_choices: frozenset[int] = frozenset()


class Cursor:
    """Takes entries in any order; gives out each token, mark and end once, in the order of the log.

    Invariant: `_chains[i]` is the chain before position i, for every position taken; so there is one more of them
    than of `_choices`, which has the choice of the token at each.

    Attributes:
        job: what is generated; to be known before the end is taken.
        attempt: the highest attempt told.
        ending: how the generation ended; then nothing more comes.
    """

    def __init__(self, job: Job | None) -> None:
        """Args: job: None if it is set later."""
        self.job = job
        self.attempt = 0
        self.ending: Ending | None = None
        self._chains = array("I", [CHAIN_START])
        self._choices = bytearray()
        self._told_choices: set[int] = set()

    @property
    def position(self) -> int:
        """Tokens taken: the position of the next one."""
        return len(self._chains) - 1

    @property
    def chain(self) -> int:
        """The chain over all tokens taken."""
        return self._chains[-1]

    @property
    def place(self) -> Place:
        """Where the cursor stands."""
        return Place(self.position, self.attempt, frozenset(self._told_choices))

    def go_back(self, place: Place) -> None:
        """Forget what was taken after `place`."""
        del self._chains[place.position + 1 :]
        del self._choices[place.position :]
        self.attempt = place.attempt
        self._told_choices = set(place.told_choices)
        self.ending = None

    def take(self, entry: LogEntry) -> list[Piece]:
        """What the entry adds: nothing if it was taken before.

        Raises Disagreement if there is a gap before it or it contradicts what was taken, MissingMark, and
        MalformedMessage; nothing of the entry is then taken.
        """
        match entry:
            case TokenRow():
                return self._take_tokens(entry)
            case AttemptMark():
                return self._take_mark(entry)
            case Ending():
                return self._take_ending(entry)

    def _take_tokens(self, row: TokenRow) -> list[Piece]:
        old = self.position - row.t0
        if old < 0 or row.chain0 != self._chains[row.t0]:
            raise Disagreement
        tokens = decode_tokens(row.body) if row.body else ()
        if len(tokens) != row.end - row.t0:
            raise Disagreement
        for token, chain in zip(tokens, self._chains[row.t0 + 1 :], strict=False):
            if token.chain != chain:
                raise Disagreement
        new = tokens[old:]
        if new and new[0].position != self.position:
            raise Disagreement
        pieces = [Piece(row.body if old == 0 else _encode(new), is_tokens=True)] if new else []
        pieces += self._tell(row.choice_ends)
        self._chains.extend(token.chain for token in new)
        self._choices.extend(token.choice for token in new)
        return pieces

    def _take_mark(self, mark: AttemptMark) -> list[Piece]:
        if mark.attempt <= self.attempt:
            return []
        if mark.position > self.position:
            raise Disagreement
        if mark.attempt > self.attempt + 1:
            raise MissingMark
        self.attempt = mark.attempt
        return [Piece(events.started(mark), is_tokens=False)]

    def _take_ending(self, ending: Ending) -> list[Piece]:
        if self.ending is not None:
            return []
        if ending.num_tokens != self.position:
            raise Disagreement
        if ending.attempts > self.attempt:
            raise MissingMark
        assert self.job is not None, "the end came before the job"
        counts = [self._choices.count(choice) for choice in range(self.job.num_choices)]
        pieces = self._tell(events.ends_of(ending, counts, self._told_choices))
        if events.is_ok(ending):
            pieces.append(Piece(events.completed(ending, self.job), is_tokens=False))
        self.ending = ending
        return pieces

    def _tell(self, ends: Sequence[ChoiceEnd]) -> list[Piece]:
        untold = [end for end in ends if end.choice not in self._told_choices]
        pieces = [Piece(events.choice_finished(end), is_tokens=False) for end in untold]
        self._told_choices.update(end.choice for end in untold)
        return pieces


def _encode(tokens: Sequence[common_pb2.Token]) -> bytes:
    return generation_pb2.GenerateResponse(tokens=tokens).SerializeToString()
