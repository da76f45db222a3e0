"""Every name of a span, an attribute or a metric that this project emits; nothing else spells one.

`rpc.*` and `gen_ai.*` follow the OpenTelemetry semantic conventions as of October 2026 (the latter are in development
there, so they stand in this one place); `llamaherd.*` is ours. Values are never prompts, texts or tokens. What a metric
is labelled by is a bounded set, never an id.
"""

import enum
from dataclasses import dataclass

# Spans, in the order in which a request opens them.
SPAN_CLIENT = "generate"  # the caller's, here `herd generate` and each turn of `herd chat`
SPAN_RPC = "llamaherd.v1.GenerationService/Generate"  # the gateway's; every other RPC is named by its method likewise
SPAN_SESSION = "chat session"  # a conversation was opened; every turn links to it, and no span lasts as long as it
SPAN_TURN = "chat turn"  # the gateway's, one for each turn
SPAN_QUEUE = "queue"  # from acceptance to the first worker, or from one worker's loss to the next
SPAN_ATTEMPT = "attempt"  # one worker's work on a generation
SPAN_PREFILL = "prefill"
SPAN_DECODE = "decode"

# Attributes of the RPC.
ATTR_RPC_SYSTEM = "rpc.system.name"
ATTR_RPC_METHOD = "rpc.method"
ATTR_RPC_STATUS = "rpc.response.status_code"
ATTR_ERROR_TYPE = "error.type"

# What was asked for.
ATTR_OPERATION = "gen_ai.operation.name"  # chat | text_completion
ATTR_PROVIDER = "gen_ai.provider.name"
ATTR_REQUEST_MODEL = "gen_ai.request.model"
ATTR_REQUEST_STREAM = "gen_ai.request.stream"
ATTR_REQUEST_TEMPERATURE = "gen_ai.request.temperature"
ATTR_REQUEST_TOP_P = "gen_ai.request.top_p"
ATTR_REQUEST_TOP_K = "gen_ai.request.top_k"
ATTR_REQUEST_SEED = "gen_ai.request.seed"
ATTR_REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"

# What came back.
ATTR_RESPONSE_ID = "gen_ai.response.id"
ATTR_RESPONSE_MODEL = "gen_ai.response.model"
ATTR_FINISH_REASONS = "gen_ai.response.finish_reasons"  # one per choice
ATTR_TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"  # seconds, from the RPC's start
ATTR_PROMPT_TOKENS = "gen_ai.usage.input_tokens"
ATTR_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"

# Ours.
ATTR_REQUEST_ID = "llamaherd.request.id"
ATTR_GENERATION_ID = "llamaherd.generation.id"
ATTR_SESSION_ID = "llamaherd.session.id"
ATTR_TURN = "llamaherd.turn"  # of a conversation, counted from 0
ATTR_PRIORITY = "llamaherd.priority"  # high | normal | low
ATTR_WORKER_ID = "llamaherd.worker.id"
ATTR_ATTEMPT = "llamaherd.attempt"  # counted from 1
ATTR_REDIS_WEAKNESS = "llamaherd.redis.weakness"  # forgets | unwritten | evicts | evicted
ATTR_FINISH_REASON = "llamaherd.finish_reason"  # of one attempt

PROVIDER = "llamaherd"
OPERATION_CHAT = "chat"
OPERATION_TEXT = "text_completion"

# Of metrics.
ATTR_TOKEN_TYPE = "gen_ai.token.type"  # input | output
TOKEN_INPUT = "input"
TOKEN_OUTPUT = "output"


class Kind(enum.StrEnum):
    """What a metric does over time; each is cumulative."""

    COUNTER = "counter"
    HISTOGRAM = "histogram"
    GAUGE = "gauge"


class Source(enum.StrEnum):
    """Which process tells it."""

    GATEWAY = "gateway"
    SUPERVISOR = "worker"  # the worker's supervisor, which outlives its engine process
    ENGINE = "engine"  # what serves the worker's engine; its endpoint is the supervisor's


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        unit: as UCUM has it; `{token}` and the like only say what is counted.
        labels: names of the attributes that its values may have.
        buckets: upper bounds, of a histogram.
    """

    name: str
    kind: Kind
    unit: str
    sources: tuple[Source, ...]
    labels: tuple[str, ...]
    description: str
    buckets: tuple[float, ...] = ()

    @property
    def prometheus_name(self) -> str:
        """The family's name in Prometheus' text format; a histogram's samples add _bucket, _count and _sum."""
        unit = "_seconds" if self.unit == "s" else ""
        total = "_total" if self.kind is Kind.COUNTER else ""
        return f"{prometheus_label(self.name)}{unit}{total}"


def prometheus_label(attribute: str) -> str:
    """An attribute's name as Prometheus has it."""
    return attribute.replace(".", "_")


_GEN_AI = (ATTR_OPERATION, ATTR_PROVIDER, ATTR_REQUEST_MODEL)
_GATEWAY, _SUPERVISOR, _ENGINE = (Source.GATEWAY,), (Source.SUPERVISOR,), (Source.ENGINE,)
_DOUBLINGS = tuple(round(0.01 * 2**n, 2) for n in range(14))  # 0.01 .. 81.92

# By the conventions, buckets included.
RPC_DURATION = Metric(
    "rpc.server.call.duration",
    *(Kind.HISTOGRAM, "s", _GATEWAY, (ATTR_RPC_SYSTEM, ATTR_RPC_METHOD, ATTR_RPC_STATUS, ATTR_ERROR_TYPE)),
    "an RPC, from its first byte to its status",
    (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
)
REQUEST_DURATION = Metric(
    "gen_ai.server.request.duration",
    *(Kind.HISTOGRAM, "s", _GATEWAY, (*_GEN_AI, ATTR_ERROR_TYPE)),
    "an RPC or a turn that generates, to its last token",
    _DOUBLINGS,
)
TIME_TO_FIRST_TOKEN = Metric(
    "gen_ai.server.time_to_first_token",
    *(Kind.HISTOGRAM, "s", _GATEWAY, _GEN_AI),
    "from the RPC's start until its first token was written",
    (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
)
TIME_PER_OUTPUT_TOKEN = Metric(
    "gen_ai.server.time_per_output_token",
    *(Kind.HISTOGRAM, "s", _GATEWAY, _GEN_AI),
    "a generation's mean time between two tokens of a choice",
    (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5),
)
TOKEN_USAGE = Metric(
    "gen_ai.client.token.usage",
    *(Kind.HISTOGRAM, "{token}", _GATEWAY, (*_GEN_AI, ATTR_TOKEN_TYPE)),
    "tokens of one generation, prompt and output apart",
    tuple(float(4**n) for n in range(14)),
)

# Ours: what a gateway sees.
STREAMS = Metric("llamaherd.streams", Kind.GAUGE, "{stream}", _GATEWAY, (), "RPCs that follow a generation now")
SENT_TOKENS = Metric(
    "llamaherd.streams.tokens", Kind.COUNTER, "{token}", _GATEWAY, (), "tokens given to readers, each as often as read"
)
STALLED_READERS = Metric(
    "llamaherd.streams.stalled",
    *(Kind.COUNTER, "{stream}", _GATEWAY, ()),
    "streams ended because their clients took no message for too long",
)
LOG_FILLS = Metric(
    "llamaherd.log.fills",
    Kind.COUNTER,
    "{read}",
    _GATEWAY,
    (),
    "token logs read, by readers that joined or missed rows",
)
QUEUE_DEPTH = Metric(
    "llamaherd.queue.depth",
    *(Kind.GAUGE, "{job}", _GATEWAY, (ATTR_REQUEST_MODEL, ATTR_PRIORITY)),
    "jobs that no worker holds; every gateway tells the same number",
)
LIVE_WORKERS = Metric(
    "llamaherd.workers",
    *(Kind.GAUGE, "{worker}", _GATEWAY, (ATTR_REQUEST_MODEL,)),
    "workers that live and are ready, as this gateway sees them",
)
DEAD_LETTERS = Metric(
    "llamaherd.dead_letters",
    *(Kind.GAUGE, "{job}", _GATEWAY, ()),
    "jobs set aside: they kept killing workers, or cannot be read; the newest thousand",
)
REDIS_OUTAGES = Metric(
    "llamaherd.redis.outages",
    *(Kind.COUNTER, "{outage}", (Source.GATEWAY, Source.SUPERVISOR), ()),
    "times that Redis stopped answering this process",
)
REDIS_WEAKNESSES = Metric(
    "llamaherd.redis.weaknesses",
    *(Kind.GAUGE, "{weakness}", (Source.GATEWAY, Source.SUPERVISOR), (ATTR_REDIS_WEAKNESS,)),
    "1 while Redis breaks a promise: no append-only file, or one it cannot write; an evicting policy, or keys evicted",
)

# Ours: what a worker does.
RUNNING = Metric(
    "llamaherd.sequences.running",
    Kind.GAUGE,
    "{sequence}",
    _SUPERVISOR,
    (ATTR_REQUEST_MODEL,),
    "sequences that hold KV blocks",
)
SLOTS = Metric(
    "llamaherd.slots", Kind.GAUGE, "{generation}", _SUPERVISOR, (ATTR_REQUEST_MODEL,), "generations the worker can hold"
)
KV_USED = Metric(
    "llamaherd.kv.blocks.used", Kind.GAUGE, "{block}", _SUPERVISOR, (ATTR_REQUEST_MODEL,), "KV blocks in use"
)
KV_TOTAL = Metric(
    "llamaherd.kv.blocks", Kind.GAUGE, "{block}", _SUPERVISOR, (ATTR_REQUEST_MODEL,), "KV blocks there are"
)
TOKENS = Metric(
    "llamaherd.tokens",
    *(Kind.COUNTER, "{token}", _SUPERVISOR, (ATTR_REQUEST_MODEL, ATTR_TOKEN_TYPE)),
    "prompt tokens given to the engine (again with each attempt) and tokens made by it",
)
ENGINE_RESTARTS = Metric(
    "llamaherd.engine.restarts",
    Kind.COUNTER,
    "{restart}",
    _SUPERVISOR,
    (ATTR_REQUEST_MODEL,),
    "engine processes that died",
)
REAPS = Metric(
    "llamaherd.reaps",
    *(Kind.COUNTER, "{worker}", _SUPERVISOR, (ATTR_REQUEST_MODEL,)),
    "dead engine processes whose jobs this worker freed, its own included",
)
QUEUE_DURATION = Metric(
    "llamaherd.queue.duration",
    *(Kind.HISTOGRAM, "s", _ENGINE, (ATTR_REQUEST_MODEL, ATTR_PRIORITY)),
    "from acceptance until a worker first took the job, on Redis' clock",
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)
STEP_DURATION = Metric(
    "llamaherd.step.duration",
    *(Kind.HISTOGRAM, "s", _ENGINE, (ATTR_REQUEST_MODEL,)),
    "one engine step",
    (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5),
)
BATCH_SIZE = Metric(
    "llamaherd.step.sequences",
    *(Kind.HISTOGRAM, "{sequence}", _ENGINE, (ATTR_REQUEST_MODEL,)),
    "sequences that ran in a step: the batch size",
    (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024),
)
PREEMPTIONS = Metric(
    "llamaherd.preemptions",
    *(Kind.COUNTER, "{sequence}", _ENGINE, (ATTR_REQUEST_MODEL,)),
    "sequences that gave their KV blocks back to be computed again",
)
REDELIVERIES = Metric(
    "llamaherd.redeliveries",
    *(Kind.COUNTER, "{attempt}", _ENGINE, (ATTR_REQUEST_MODEL,)),
    "attempts after the first: another worker, or this one before, did not end the job",
)
LEASE_LOSSES = Metric(
    "llamaherd.lease.losses",
    *(Kind.COUNTER, "{attempt}", _ENGINE, (ATTR_REQUEST_MODEL,)),
    "attempts dropped because the job was another worker's by then",
)
POISON = Metric(
    "llamaherd.poison",
    Kind.COUNTER,
    "{job}",
    _ENGINE,
    (ATTR_REQUEST_MODEL,),
    "jobs set aside: they kept killing workers, or cannot be read",
)

METRICS = tuple(value for value in tuple(globals().values()) if isinstance(value, Metric))
