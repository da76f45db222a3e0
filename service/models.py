"""Which models there are, which of them live workers serve, and their tokenizers: watched from Redis.

A worker lives while its heartbeat counter moves on this process' own monotonic clock; time to live means nothing,
since an outage of Redis would then end everybody at once.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from contract.broker import Broker, WorkerBeat
from contract.bundle import ModelBundle
from contract.errors import BrokerDown, FieldViolation, InvalidRequest, NoWorker, UnknownModel
from service.backoff import until_answered
from service.metrics import count_redis_outage
from service.tokenizer import PromptTokenizer

POLL_S = 0.3
LATE_POLL_S = 2 * POLL_S  # a longer gap between two polls is our own pause: nobody is judged by it
MIN_POLLS = 3
ANNOUNCED_EVERY_S = 5.0  # what is announced changes only when a worker starts
FORGET_S = 5.0  # a server that comes back empty has lost what was announced; workers announce it again within two
READY = "ready"

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Pulse:
    """What is known of one worker: what its last beat said, since when that stands (own clock), in how many polls."""

    beat: str
    model: str
    is_ready: bool
    is_device_fresh: bool
    is_live: bool
    job_level: int
    since_s: float
    num_polls: int = 0


class Liveness:
    """The workers as successive polls of the pool show them."""

    def __init__(self, dead_after_s: float, stale_after_s: float) -> None:
        """Args: stale_after_s: a device that has computed nothing for this long may hang."""
        self._dead_after_s = dead_after_s
        self._stale_after_ms = stale_after_s * 1000
        self._pulses: dict[str, Pulse] = {}
        self._last_poll_s: float | None = None

    def observe(self, beats: Sequence[WorkerBeat], now_s: float) -> None:
        """Take in one successful poll, made at `now_s` of a monotonic clock."""
        first = self._last_poll_s is None
        late = self._last_poll_s is None or now_s - self._last_poll_s > LATE_POLL_S
        self._last_poll_s = now_s
        pulses: dict[str, Pulse] = {}
        for worker in beats:
            known = self._pulses.get(worker.worker_id)
            if known is None:  # the first poll may find the key of a worker long dead; a later newcomer has just begun
                known = self._pulse(worker, is_live=not first, now_s=now_s)
            elif known.beat != worker.beat:
                known = self._pulse(worker, is_live=True, now_s=now_s)
            elif late:
                known.since_s, known.num_polls = now_s, 0
            else:
                known.num_polls += 1
                if known.num_polls >= MIN_POLLS and now_s - known.since_s >= self._dead_after_s:
                    known.is_live = False
            pulses[worker.worker_id] = known
        self._pulses = pulses

    def start_over(self) -> None:
        """A poll failed: who stands still now may only be out of sight."""
        if self._last_poll_s is not None:
            self._last_poll_s = float("-inf")

    def live_models(self) -> dict[str, int]:
        """Models with live workers that are ready, and how many."""
        counts: dict[str, int] = {}
        for pulse in self._pulses.values():
            if pulse.is_live and pulse.is_ready:
                counts[pulse.model] = counts.get(pulse.model, 0) + 1
        return counts

    def job_levels(self) -> dict[str, int]:
        """The same models with the lowest level of these workers: each of them may get any job of the model."""
        levels: dict[str, int] = {}
        for pulse in self._pulses.values():
            if pulse.is_live and pulse.is_ready:
                levels[pulse.model] = min(pulse.job_level, levels.get(pulse.model, pulse.job_level))
        return levels

    def healthy_models(self) -> frozenset[str]:
        """Those among them with a worker whose device has lately computed something."""
        pulses = self._pulses.values()
        return frozenset(each.model for each in pulses if each.is_live and each.is_ready and each.is_device_fresh)

    def _pulse(self, worker: WorkerBeat, *, is_live: bool, now_s: float) -> Pulse:
        fields = worker.fields
        return Pulse(
            worker.beat,
            fields.get("model", ""),
            is_ready=fields.get("state", READY) == READY,
            is_device_fresh=self._is_fresh(fields.get("device_age_ms")),
            is_live=is_live,
            job_level=int(level) if (level := fields.get("job_level", "")).isdecimal() else 0,
            since_s=now_s,
        )

    def _is_fresh(self, age_ms: str | None) -> bool:
        """By the beat's word: None from a worker of an earlier version, '' from one that has not computed yet."""
        if age_ms is None:
            return True
        return age_ms.isdecimal() and int(age_ms) <= self._stale_after_ms


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as requests meet it."""

    name: str
    digest: str
    bundle: ModelBundle
    tokenizer: PromptTokenizer


class Models:
    """The models of this herd.

    Invariant: `live` and `healthy` are what the last successful poll showed, and empty while Redis does not answer.

    Attributes:
        live: models with workers that beat and are ready, and how many: they take jobs.
        healthy: those of them with a worker whose device has lately computed something.
    """

    def __init__(self, broker: Broker, dead_after_s: float, stale_after_s: float) -> None:
        self._broker = broker
        self._liveness = Liveness(dead_after_s, stale_after_s)
        self._announced: Mapping[str, str] = {}  # model name -> bundle digest
        self._announced_s = float("-inf")  # when that was read
        self._live_s: dict[str, float] = {}  # when a model was last live; an outage counts for nothing
        self._served: dict[tuple[str, str], ServedModel] = {}  # by name and bundle digest
        self._loading = asyncio.Lock()
        self.live: Mapping[str, int] = {}
        self.job_levels: Mapping[str, int] = {}
        self.healthy: frozenset[str] = frozenset()
        self.is_broker_down = False

    async def watch(self, on_poll: Callable[[], None]) -> None:
        """Poll for ever; `on_poll` is called after each, failed or not."""
        while True:
            try:
                await self.poll()
            except BrokerDown:
                self._note_outage()
            on_poll()
            await asyncio.sleep(POLL_S)

    async def first_look(self) -> None:
        """Poll until it is known who lives: it takes two beats to see that one moves."""
        await until_answered(self.poll)
        await asyncio.sleep(POLL_S)
        await until_answered(self.poll)

    async def poll(self) -> None:
        """Look once. Raises BrokerDown."""
        now_s = time.monotonic()
        self._liveness.observe(await self._broker.pool(), now_s)
        live = self._liveness.live_models()
        self._live_s |= dict.fromkeys([*live, *self._live_s] if self.is_broker_down else live, now_s)
        if now_s - self._announced_s > ANNOUNCED_EVERY_S or not live.keys() <= self._announced.keys():
            self._note_announced(await self._broker.models(live), now_s)
        self.live = live
        self.job_levels = self._liveness.job_levels()
        self.healthy = self._liveness.healthy_models()
        self.is_broker_down = False

    def _note_announced(self, found: Mapping[str, str], now_s: float) -> None:
        """These are announced now; what was live within FORGET_S is not forgotten yet."""
        kept = {n: d for n, d in self._announced.items() if now_s - self._live_s.get(n, float("-inf")) <= FORGET_S}
        self._announced, self._announced_s = {**kept, **found}, now_s

    @property
    def known(self) -> frozenset[str]:
        """Models that were announced, served now or not."""
        return frozenset(self._announced) | self.live.keys()

    def name_of(self, model: str, field: str = "spec.model") -> str:
        """The model a request means by `field`: its own word, or the only one there is.

        Raises UnknownModel, InvalidRequest (several are served and none is named), BrokerDown, or NoWorker (none is).
        """
        if model:
            if model in self._announced or model in self.live:
                return model
            if self.is_broker_down:
                raise BrokerDown
            raise UnknownModel(model, list(self._announced))
        candidates = sorted(self.live) or sorted(self._announced)
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            text = f"is required, as several models are served: {', '.join(candidates)}"
            raise InvalidRequest([FieldViolation(field, text)])
        if self.is_broker_down:
            raise BrokerDown
        raise NoWorker(model)

    async def get(self, name: str) -> ServedModel:
        """The model with its tokenizer, loaded once for each bundle.

        Raises BrokerDown, UnknownModel (announced no longer) or NoWorker (its bundle has expired).
        """
        digest = self._announced.get(name)
        if digest is None:
            raise UnknownModel(name, list(self._announced))
        if (name, digest) not in self._served:
            async with self._loading:  # one at a time: parsing takes a second of CPU for a real vocabulary
                if (name, digest) not in self._served:
                    model = await self._load(name, digest)
                    current = self._announced.items()
                    self._served = {key: m for key, m in self._served.items() if key in current}
                    self._served[name, digest] = model
        return self._served[name, digest]

    async def _load(self, name: str, digest: str) -> ServedModel:
        payload = await self._broker.bundle(digest)
        if payload is None:
            raise NoWorker(name)
        model = await asyncio.to_thread(_parse, name, digest, payload)
        log.info("model loaded", model=name, bundle_digest=digest, context_length=model.bundle.context_length)
        return model

    def _note_outage(self) -> None:
        if not self.is_broker_down:
            log.warning("the broker does not answer")
            count_redis_outage()
        self.is_broker_down = True
        self._liveness.start_over()
        self.live = {}
        self.healthy = frozenset()


def _parse(name: str, digest: str, payload: bytes) -> ServedModel:
    bundle = ModelBundle.from_bytes(payload)
    return ServedModel(name, digest, bundle, PromptTokenizer(bundle))
