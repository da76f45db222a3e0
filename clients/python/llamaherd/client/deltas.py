"""What a stream's user sees: deltas while it runs, and the facts of its generation at any time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from llamaherd.client.resume import Reading
from llamaherd.v1 import chat_pb2, common_pb2, generation_pb2


@dataclass(frozen=True, slots=True)
class Delta:
    """What came of one choice.

    Attributes:
        choice: which, from 0.
        text: goes at the end of the choice's text.
        tokens: what the text came with; empty if the choice's end released text that was held back.
        finished: why the choice ended, with its last delta.
    """

    choice: int
    text: str
    tokens: tuple[common_pb2.Token, ...] = ()
    finished: common_pb2.ChoiceFinished | None = None


def deltas_of(message: generation_pb2.GenerateResponse) -> Iterator[Delta]:
    """The deltas of one message; accepted, queued, started and completed have none."""
    for choice, group in groupby(message.tokens, key=lambda token: token.choice):
        tokens = tuple(group)
        yield Delta(choice, "".join(token.text for token in tokens), tokens)
    if message.HasField("choice_finished"):
        finished = message.choice_finished
        yield Delta(finished.choice, finished.text, finished=finished)


class StreamFacts:
    """What is known of a stream's generation so far; before `accepted` has come, nothing is."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @property
    def request_id(self) -> str | None:
        """The id that makes the request idempotent; None if another call has started the generation."""
        return self._reading.request.request_id if self._reading.request is not None else None

    @property
    def generation_id(self) -> str:
        """For `attach`, `get` and `cancel`; empty before `accepted`."""
        return self._reading.generation_id

    @property
    def accepted(self) -> common_pb2.Accepted | None:
        """Prompt tokens, and the settings used with every default and the seed filled in."""
        return self._reading.accepted

    @property
    def position(self) -> int:
        """The position of the next token, over all choices: where another reader would go on.

        A message of the service may hold tokens of several choices, and so several deltas: this counts all of them.
        """
        return self._reading.position

    @property
    def chain(self) -> int | None:
        """Proves all tokens before `position`; goes into `attach` with it."""
        return self._reading.chain

    @property
    def attempts(self) -> int:
        """How many workers have had the generation so far."""
        return self._reading.attempt

    @property
    def finished(self) -> Mapping[int, common_pb2.ChoiceFinished]:
        """How each choice ended, of those that have."""
        return self._reading.finished

    @property
    def completed(self) -> common_pb2.Completed | None:
        """Counts, times and attempts, once everything has come."""
        return self._reading.completed

    @property
    def usage(self) -> common_pb2.Usage | None:
        """What was counted, once everything has come."""
        return self.completed.usage if self.completed is not None else None

    @property
    def timings(self) -> common_pb2.Timings | None:
        """Where the time went, once everything has come."""
        return self.completed.timings if self.completed is not None else None

    @property
    def turn(self) -> chat_pb2.TurnFinished | None:
        """Of a conversation's turn that is complete: its number, and how many of the oldest turns were left out."""
        return self._reading.turn
