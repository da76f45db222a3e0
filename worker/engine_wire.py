"""What the engine process and the serving process tell each other: frames over a socket pair.

Both run the same code of the same interpreter, as children of one supervisor: what comes in is never doubted.
A token's event, of which there are thousands a second, is a tuple that `marshal` writes in 0.2 us; the rest is pickled.
"""

import marshal
import pickle
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from worker.engine.sequence import StepEvent, TokenEvent

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
    if type(event) is TokenEvent and not event.top_logprobs:
        return event.generation_id, event.choice, event.index, event.token_id, event.text, event.logprob
    return pickle.dumps(event, protocol=pickle.HIGHEST_PROTOCOL)


def _unpack(packed: Any) -> StepEvent:
    if type(packed) is tuple:
        return TokenEvent(*packed)
    event: StepEvent = pickle.loads(packed)
    return event
