"""What a gateway counts: its RPCs, what they generate, and what it sees of the herd. Never one observation a token.

What an RPC generates is noted on the way, by the calls that describe it on its span too (service/spans.py).
"""

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from contract.broker import Broker
from contract.errors import BrokerDown
from contract.messages import Ending, EndReason, Job
from service.admission import Admission
from telemetry import names
from telemetry.metrics import Labels, Reading, counter, histogram, observe

if TYPE_CHECKING:
    from service.models import Models
    from service.queues import Queues

POLL_S = 1.0

_rpc_duration = histogram(names.RPC_DURATION)
_request_duration = histogram(names.REQUEST_DURATION)
_time_to_first_token = histogram(names.TIME_TO_FIRST_TOKEN)
_time_per_output_token = histogram(names.TIME_PER_OUTPUT_TOKEN)
_token_usage = histogram(names.TOKEN_USAGE)
_log_fills = counter(names.LOG_FILLS)
_stalled_readers = counter(names.STALLED_READERS)
_redis_outages = counter(names.REDIS_OUTAGES)


@dataclass(slots=True)
class _Tally:
    """What is counted too often for an instrument; written on the event loop only."""

    num_sent_tokens: int = 0


_tally = _Tally()


@dataclass(slots=True)
class _Generating:
    """What the RPC at hand generates; `model` is '' until the request has proved valid, so labels stay bounded."""

    operation: str
    model: str = ""
    num_prompt_tokens: int = 0
    started_s: float = field(default_factory=time.monotonic)
    has_first_token: bool = False
    has_ended: bool = False

    @property
    def labels(self) -> dict[str, str]:
        """Of every gen_ai metric."""
        return {
            names.ATTR_OPERATION: self.operation,
            names.ATTR_PROVIDER: names.PROVIDER,
            names.ATTR_REQUEST_MODEL: self.model,
        }


_generating: ContextVar[_Generating | None] = ContextVar("generating", default=None)


def note_operation(operation: str) -> None:
    """This RPC generates."""
    _generating.set(_Generating(operation))


def note_job(model: str, num_prompt_tokens: int) -> None:
    """Its request is valid."""
    if (generating := _generating.get()) is not None:
        generating.model, generating.num_prompt_tokens = model, num_prompt_tokens


def note_first_token(after_s: float) -> None:
    """Its first token is on its way to the client, so many seconds after the RPC began."""
    if (generating := _generating.get()) is not None:
        generating.has_first_token = True
        _time_to_first_token.record(after_s, generating.labels)


def note_ending(ending: Ending, job: Job) -> None:
    """Its generation ended well: what is known of it now, from the times that Redis stamped."""
    generating = _generating.get()
    if generating is None:
        return
    labels, times = generating.labels, ending.times
    generating.has_ended = True
    _request_duration.record(time.monotonic() - generating.started_s, labels)
    if times.first_token_ms and not generating.has_first_token:
        _time_to_first_token.record(max(0, times.first_token_ms - times.accepted_ms) / 1000, labels)
    num_output = job.num_output(ending.num_tokens)
    num_gaps = num_output / job.num_choices - 1
    if ending.reason is EndReason.DONE and num_gaps > 0 and not job.echo:  # an echoed token was none to wait for
        decode_s = max(0, times.last_token_ms - times.first_token_ms) / 1000
        _time_per_output_token.record(decode_s / num_gaps, labels)
    for token_type, count in (
        (names.TOKEN_INPUT, generating.num_prompt_tokens),
        (names.TOKEN_OUTPUT, num_output),
    ):
        _token_usage.record(count, {**labels, names.ATTR_TOKEN_TYPE: token_type})


def note_failure(reason: str) -> None:
    """Its generation did not end well, or not for this caller. Only the first end counts."""
    generating = _generating.get()
    if generating is not None and generating.model and not generating.has_ended:
        generating.has_ended = True
        labels = {**generating.labels, names.ATTR_ERROR_TYPE: reason}
        _request_duration.record(time.monotonic() - generating.started_s, labels)


def note_rpc(method: str, code: str, reason: str, duration_s: float) -> None:
    """It ended; `reason` is '' where it ended well."""
    error = {names.ATTR_ERROR_TYPE: reason} if reason else {}
    labels = {names.ATTR_RPC_SYSTEM: "grpc", names.ATTR_RPC_METHOD: method, names.ATTR_RPC_STATUS: code, **error}
    _rpc_duration.record(duration_s, labels)
    if reason:
        note_failure(reason)


def count_sent_tokens(num_tokens: int) -> None:
    """So many tokens are given to one reader."""
    _tally.num_sent_tokens += num_tokens


def count_log_fill() -> None:
    """A reader reads its log."""
    _log_fills.add(1)


def count_stalled_reader() -> None:
    """A stream ended because its client took nothing."""
    _stalled_readers.add(1)


def count_redis_outage() -> None:
    """Redis has stopped answering."""
    _redis_outages.add(1)


class HerdView:
    """What this gateway sees of the herd, kept for whoever asks for the metrics."""

    def __init__(self, broker: Broker, models: "Models", admission: Admission, queues: "Queues") -> None:
        self._broker = broker
        self._models = models
        self._admission = admission
        self._queues = queues
        self._num_dead = 0

    async def watch(self) -> None:
        """Look every POLL_S, for ever; an outage leaves what was seen last."""
        for count in (_log_fills, _stalled_readers, _redis_outages):
            count.add(0)
        observe(names.SENT_TOKENS, lambda: [(_tally.num_sent_tokens, {})])
        observe(names.STREAMS, lambda: [(self._admission.num_inside, {})])
        observe(names.QUEUE_DEPTH, self._read_depths)
        observe(names.LIVE_WORKERS, self._read_workers)
        observe(names.DEAD_LETTERS, lambda: [(self._num_dead, {})])
        while True:
            with suppress(BrokerDown):  # told by service.models
                self._num_dead = await self._broker.dead.count()
            await asyncio.sleep(POLL_S)

    def _read_depths(self) -> Iterable[Reading]:
        for (model, job_class), depth in self._queues.depths.items():
            yield depth.num_waiting, {names.ATTR_REQUEST_MODEL: model, names.ATTR_PRIORITY: job_class}

    def _read_workers(self) -> Iterable[Reading]:
        live = self._models.live
        models: set[str] = {model for model, _ in self._queues.depths} | live.keys()
        for model in models:
            labels: Labels = {names.ATTR_REQUEST_MODEL: model}
            yield live.get(model, 0), labels
