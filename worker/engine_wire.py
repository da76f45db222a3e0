"""What the engine process and the serving process tell each other: frames over a socket pair.

Both run the same code of the same interpreter, as children of one supervisor: what comes in is never doubted.
A token's event, of which there are thousands a second, is a tuple that `marshal` writes in 0.2 us. So are the logprobs
of a prompt and all alternatives, of which 80,000 may come at once; the rest is pickled.
"""

import marshal
import pickle
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from worker.engine.sequence import PromptLogprob, PromptLogprobsEvent, StepEvent, TokenEvent, TokenLogprob

TOKEN_PARTS = 6  # of a token's event without alternatives; they are the seventh

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step of the engine made.

    Attributes:
        took_s: on the host.
        num_scheduled: sequences that ran in it; 0 for one that only closed what had ended.
        num_preemptions: so far.
    """

    took_s: float
    num_scheduled: int
    num_preemptions: int
    events: Sequence[StepEvent]


def frame(message: object) -> bytes:
    """Anything but a report: commands one way, and what happens once the other."""
    return _framed(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))


def report_frame(report: StepReport) -> bytes:
    """A step's report."""
    events = [_pack(event) for event in report.events]
    packed = (report.took_s, report.num_scheduled, report.num_preemptions, events)
    return _framed(b"\0" + marshal.dumps(packed))  # no pickle begins so


class Frames:
    """Cuts what comes in into messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that `data` completes: StepReports, and whatever else was framed. Take them all."""
        self._bytes += data
        start = 0
        while len(self._bytes) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._bytes, start)
            end = start + _LENGTH.size + length
            if len(self._bytes) < end:
                break
            yield _unframed(bytes(self._bytes[start + _LENGTH.size : end]))
            start = end
        del self._bytes[:start]


def _framed(payload: bytes) -> bytes:
    return _LENGTH.pack(len(payload)) + payload


def _unframed(payload: bytes) -> Any:
    if payload[0]:
        return pickle.loads(payload)
    took_s, num_scheduled, num_preemptions, events = marshal.loads(memoryview(payload)[1:])
    return StepReport(took_s, num_scheduled, num_preemptions, [_unpack(event) for event in events])


def _pack(event: StepEvent) -> tuple[object, ...] | bytes:
    if type(event) is TokenEvent:
        token = event.generation_id, event.choice, event.index, event.token_id, event.text, event.logprob
        return (*token, _pairs(event.top_logprobs)) if event.top_logprobs else token
    if type(event) is PromptLogprobsEvent:
        return event.generation_id, [(each.token_id, each.logprob, _pairs(each.top_logprobs)) for each in event.tokens]
    return pickle.dumps(event, protocol=pickle.HIGHEST_PROTOCOL)


def _unpack(packed: Any) -> StepEvent:
    if type(packed) is tuple and len(packed) == TOKEN_PARTS:
        return TokenEvent(*packed)
    if type(packed) is tuple and len(packed) > TOKEN_PARTS:
        token = TokenEvent(*packed[:TOKEN_PARTS])
        token.top_logprobs = _top(packed[TOKEN_PARTS])
        return token
    if type(packed) is tuple:
        generation_id, scored = packed
        tokens = [PromptLogprob(token_id, logprob, _top(pairs)) for token_id, logprob, pairs in scored]
        return PromptLogprobsEvent(generation_id, tuple(tokens))
    event: StepEvent = pickle.loads(packed)
    return event


def _pairs(top: Sequence[TokenLogprob]) -> list[tuple[int, float]]:
    return [(each.token_id, each.logprob) for each in top]


def _top(pairs: Sequence[tuple[int, float]]) -> tuple[TokenLogprob, ...]:
    return tuple([TokenLogprob(token_id, logprob) for token_id, logprob in pairs])
