"""What a worker's supervisor counts and tells, over all processes that it starts: no count ends with one.

The serving process' own metrics are asked for when the supervisor is asked: a worker has one endpoint.
"""

import http.client
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from telemetry import names
from telemetry.metrics import SCRAPE_PATH, Labels, Reading, counter, observe
from worker.progress import Progress

SERVING_HOST = "127.0.0.1"
SERVING_TIMEOUT_S = 2.0  # then it is told without; a frozen process says nothing
RATE_WINDOW_S = 2.0

_engine_restarts = counter(names.ENGINE_RESTARTS)
_reaps = counter(names.REAPS)
_redis_outages = counter(names.REDIS_OUTAGES)


def count_reap(model: str) -> None:
    """What a dead engine process held was freed."""
    _reaps.add(1, {names.ATTR_REQUEST_MODEL: model})


def count_redis_outage() -> None:
    """Redis has stopped answering."""
    _redis_outages.add(1)


@dataclass(slots=True)
class _Totals:
    """What engine processes made that have ended."""

    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_attempts: int = 0


class WorkerMeter:
    """Reads the page of the engine process at hand, if there is one."""

    def __init__(self, model: str) -> None:
        self._labels: Labels = {names.ATTR_REQUEST_MODEL: model}
        self._page: Progress | None = None
        self._ended = _Totals()
        self._samples: deque[tuple[float, int]] = deque()  # (when, output tokens by then)
        for metric, attribute in (
            (names.RUNNING, "num_sequences"),
            (names.SLOTS, "num_slots"),
            (names.KV_USED, "kv_blocks_used"),
            (names.KV_TOTAL, "kv_blocks"),
        ):
            observe(metric, partial(self._read_gauge, attribute))
        observe(names.TOKENS, self._read_tokens)

    def attend(self, page: Progress) -> None:
        """An engine process has started, with this page."""
        _engine_restarts.add(0, self._labels)
        _reaps.add(0, self._labels)
        _redis_outages.add(0)
        self._page = page

    def ended(self, *, died: bool) -> None:
        """It has ended; its page goes."""
        page, self._page = self._page, None
        if page is not None:
            self._ended.num_prompt_tokens += page.num_prompt_tokens
            self._ended.num_output_tokens += page.num_output_tokens
            self._ended.num_attempts += page.num_attempts
        if died:
            _engine_restarts.add(1, self._labels)

    def beat_fields(self) -> dict[str, str]:
        """What a heartbeat says of it, for `herd status`. Call it at every heartbeat: rates are measured between."""
        now_s, num_tokens = time.monotonic(), self._total("num_output_tokens")
        self._samples.append((now_s, num_tokens))
        while self._samples[0][0] < now_s - RATE_WINDOW_S:
            self._samples.popleft()
        since_s, num_before = self._samples[0]
        rate = (num_tokens - num_before) / (now_s - since_s) if now_s > since_s else 0.0
        return {
            "sequences": str(self._read("num_sequences")),
            "kv_blocks": str(self._read("kv_blocks")),
            "kv_blocks_used": str(self._read("kv_blocks_used")),
            "tokens": str(num_tokens),
            "tokens_per_s": f"{rate:.1f}",
            "attempts": str(self._total("num_attempts")),
        }

    def serving_text(self) -> bytes:
        """The serving process' metrics as it tells them; nothing while it cannot."""
        port = self._read("metrics_port")
        if not port:
            return b""
        connection = http.client.HTTPConnection(SERVING_HOST, port, timeout=SERVING_TIMEOUT_S)
        try:
            connection.request("GET", SCRAPE_PATH)
            answer = connection.getresponse()
            return answer.read() if answer.status == http.client.OK else b""
        except (OSError, http.client.HTTPException):
            return b""
        finally:
            connection.close()

    def _read_gauge(self, attribute: str) -> Iterable[Reading]:
        return [(self._read(attribute), self._labels)]

    def _read_tokens(self) -> Iterable[Reading]:
        for token_type, attribute in (
            (names.TOKEN_INPUT, "num_prompt_tokens"),
            (names.TOKEN_OUTPUT, "num_output_tokens"),
        ):
            yield self._total(attribute), {**self._labels, names.ATTR_TOKEN_TYPE: token_type}

    def _total(self, attribute: str) -> int:
        return int(getattr(self._ended, attribute)) + self._read(attribute)

    def _read(self, attribute: str) -> int:
        """0 where there is no process, or it ends while we look."""
        try:
            return int(getattr(self._page, attribute, 0))
        except ValueError:  # the page was unmapped on the other thread
            return 0
