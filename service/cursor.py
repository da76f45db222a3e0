"""How far one reader is in one generation's log, and what an entry adds to it. No Redis, no asyncio.

Entries come from the log, which is the truth, or from the inbox, which is a hint: a row may be missing, doubled, late,
or from before the log lost its tail. The chain tells whether an entry continues what was taken.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from contract.messages import (
    CHAIN_START,
    AttemptMark,
    ChoiceEnd,
    Ending,
    Job,
    LogEntry,
    MalformedMessage,
    TokenRow,
    decode_tokens,
)
from llamaherd.v1 import common_pb2, generation_pb2
from service import events


class Disagreement(Exception):
    """The entry does not continue what was taken so far."""


class MissingMark(Disagreement):
    """An attempt before the one at hand was not told: its mark stands further back in the log."""


class Fork(Disagreement):
    """The log holds other tokens before the resume position than its reader was once given."""


class BeyondEnd(Disagreement):
    """The generation ended before the resume position."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a reader comes in: the first position it wants, and the chain before it, if it knows that."""

    position: int = 0
    chain: int | None = None


FROM_START = Resume()


@dataclass(slots=True)  # not frozen: setting the fields of one that is takes 2 us
class Piece:
    """A serialized message; tokens may be joined by concatenation, anything else is a message of its own."""

    body: bytes
    is_tokens: bool


@dataclass(slots=True)  # not frozen: setting the fields of one that is takes 2 us
class Place:
    """Where a cursor stood; `Cursor.go_back` returns to it."""

    position: int = 0
    attempt: int = 0
    told_choices: frozenset[int] = frozenset()
    past_ends: tuple[ChoiceEnd, ...] = ()


class Cursor:
    """Takes entries in any order; gives out each token, mark and end once, in the order of the log.

    A reader that resumes takes the log from its start, so that its chain can be compared, and gives nothing out before
    the resume position. There it gives out what of the past still stands: the last attempt begun, and the end of each
    choice that has ended.

    Invariant: `_chains[i]` is the chain before position i, for every position taken; so there is one more of them
    than of `_choices`, which has the choice of the token at each.

    Attributes:
        job: what is generated; to be known before the end is taken.
        attempt: the highest attempt taken.
        ending: how the generation ended; then nothing more comes.
        resume: where the reader comes in.
    """

    def __init__(self, job: Job | None, resume: Resume = FROM_START) -> None:
        """Args: job: None if it is set later."""
        self.job = job
        self.resume = resume
        self.attempt = 0
        self.ending: Ending | None = None
        self._chains = array("I", [CHAIN_START])
        self._choices = bytearray()
        self._told_choices: set[int] = set()
        self._past_ends: list[ChoiceEnd] = []  # before the resume position; told when that is reached

    @property
    def is_ahead(self) -> bool:
        """Whether the resume position lies beyond what was taken."""
        return self.position < self.resume.position

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
        return Place(self.position, self.attempt, frozenset(self._told_choices), tuple(self._past_ends))

    def go_back(self, place: Place) -> None:
        """Forget what was taken after `place`."""
        del self._chains[place.position + 1 :]
        del self._choices[place.position :]
        self.attempt = place.attempt
        self._told_choices = set(place.told_choices)
        self._past_ends = list(place.past_ends)
        self.ending = None

    def take(self, entry: LogEntry) -> list[Piece]:
        """What the entry adds: nothing if it was taken before.

        Raises Disagreement if there is a gap before it or it contradicts what was taken, MissingMark, Fork, BeyondEnd,
        and MalformedMessage; nothing of the entry is then taken.
        """
        match entry:
            case TokenRow():
                return self._take_tokens(entry)
            case AttemptMark():
                return self._take_mark(entry)
            case Ending():
                return self._take_ending(entry)

    def _take_tokens(self, row: TokenRow) -> list[Piece]:
        position = self.position
        old = position - row.t0
        if old < 0 or row.chain0 != self._chains[row.t0]:
            raise Disagreement
        try:
            tokens = decode_tokens(row.body) if row.body else ()
        except MalformedMessage:
            raise Disagreement from None
        if len(tokens) != row.end - row.t0:
            raise Disagreement
        new = tokens
        if old:
            new = tokens[old:]
            if any(token.chain != chain for token, chain in zip(tokens, self._chains[row.t0 + 1 :], strict=False)):
                raise Disagreement
        if new and new[0].position != position:
            raise Disagreement
        if position + len(new) < self.resume.position:
            self._past_ends += self._untold(row.choice_ends)
            self._extend(new)
            return []
        pieces: list[Piece] = []
        wanted = new
        if position < self.resume.position:
            pieces, wanted = self._arrive(new), new[self.resume.position - position :]
        if wanted:
            pieces.append(Piece(row.body if len(wanted) == len(tokens) else _encode(wanted), is_tokens=True))
        if row.choice_ends:
            pieces += self._tell(row.choice_ends)
        self._extend(new)
        return pieces

    def _extend(self, new: Sequence[common_pb2.Token]) -> None:
        self._chains.extend([token.chain for token in new])
        self._choices.extend([token.choice for token in new])

    def _arrive(self, new: Sequence[common_pb2.Token]) -> list[Piece]:
        """The resume position is behind one of the new tokens: what stands there. Raises Fork."""
        if self.resume.chain not in (None, new[self.resume.position - self.position - 1].chain):
            raise Fork
        pieces = [Piece(events.started(AttemptMark(0, self.attempt)), is_tokens=False)] if self.attempt else []
        past, self._past_ends = self._past_ends, []
        return pieces + self._tell(past)

    def _take_mark(self, mark: AttemptMark) -> list[Piece]:
        if mark.attempt <= self.attempt:
            return []
        if mark.position > self.position:
            raise Disagreement
        if mark.attempt > self.attempt + 1:
            raise MissingMark
        self.attempt = mark.attempt
        return [] if self.is_ahead else [Piece(events.started(mark), is_tokens=False)]

    def _take_ending(self, ending: Ending) -> list[Piece]:
        if self.ending is not None:
            return []
        if ending.num_tokens != self.position:
            raise Disagreement
        if ending.attempts > self.attempt:
            raise MissingMark
        if self.is_ahead:
            raise BeyondEnd
        assert self.job is not None, "the end came before the job"
        counts = [self._choices.count(choice) for choice in range(self.job.num_choices)]
        pieces = self._tell(events.ends_of(ending, counts, self._told_choices))
        if events.is_ok(ending):
            pieces.append(Piece(events.completed(ending, self.job), is_tokens=False))
        self.ending = ending
        return pieces

    def _tell(self, ends: Sequence[ChoiceEnd]) -> list[Piece]:
        untold = self._untold(ends)
        pieces = [Piece(events.choice_finished(end), is_tokens=False) for end in untold]
        self._told_choices.update(end.choice for end in untold)
        return pieces

    def _untold(self, ends: Sequence[ChoiceEnd]) -> list[ChoiceEnd]:
        known = self._told_choices | {end.choice for end in self._past_ends}
        return [end for end in ends if end.choice not in known]


def _encode(tokens: Sequence[common_pb2.Token]) -> bytes:
    return generation_pb2.GenerateResponse(tokens=tokens).SerializeToString()
