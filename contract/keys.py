"""Every Redis key there is. Nothing else in the project spells a key.

All keys of one generation share the hash tag `{k}` (k is the shard, 0 <= k < S; S is 1 for now), so that one script
may touch its record, log, queue and inboxes, on a cluster too. ARCHITECTURE.md has the table with owners and lifetimes.
"""

import hashlib
import secrets

SHARDS = 1
TAG = "{0}"

META = f"{TAG}:meta"
POOL = f"{TAG}:pool"
GATEWAYS = f"{TAG}:gateways"
MODELS = f"{TAG}:models"  # the names of what was announced, by when that expires
DEAD = f"{TAG}:dead"
WAKE = f"{TAG}:wake"  # a pub/sub channel: work became free

GROUP = "w"  # the consumer group of every jobs stream
FREE = "_free"  # the consumer that holds entries nobody owns
CLASSES = ("high", "normal", "low")  # of priority, in the order they are read


def new_id() -> str:
    """A process or request id: 128 random bits, hexadecimal."""
    return secrets.token_hex(16)


def new_generation_id() -> str:
    """`k.<128 random bits>`; the shard stands first so that any gateway finds the keys."""
    return f"0.{new_id()}"


def is_generation_id(text: str) -> bool:
    """Whether `text` has the form of a generation id of this herd; keys are made of nothing else."""
    shard, dot, rest = text.partition(".")
    return shard == "0" and dot == "." and len(rest) == 32 and all(c in "0123456789abcdef" for c in rest)


def record(generation_id: str) -> str:
    """Hash: state, owner, lease, job and counters of one generation."""
    return f"{TAG}:gen:{generation_id}"


def log(generation_id: str) -> str:
    """Stream: the token log of one generation, the truth."""
    return f"{TAG}:log:{generation_id}"


def caller(name: str) -> str:
    """Sorted set: the generations of one caller that have not ended, by when their records expire."""
    return f"{TAG}:caller:{hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()}"


def queue(model: str, job_class: str) -> str:
    """Stream: the jobs of one model and class. Never trimmed, never expires; entries leave with their end."""
    return f"{TAG}:q:{model}:{job_class}"


def queues(model: str) -> list[str]:
    """The streams of all classes, in the order they are read."""
    return [queue(model, job_class) for job_class in CLASSES]


def inbox(gateway_id: str) -> str:
    """Stream: rows for one gateway process; a hint, the log is the truth."""
    return f"{TAG}:in:{gateway_id}"


def worker(worker_id: str) -> str:
    """Hash: heartbeat counter and what a worker says of itself."""
    return f"{TAG}:worker:{worker_id}"


def gateway(gateway_id: str) -> str:
    """Hash: heartbeat counter of one gateway process, and what it says of itself."""
    return f"{TAG}:gw:{gateway_id}"


def chat(session_id: str) -> str:
    """Hash: one conversation, its turns and who may go on with it."""
    return f"{TAG}:chat:{session_id}"


def model(name: str) -> str:
    """Hash: what the workers of a model announced last (bundle digest)."""
    return f"{TAG}:model:{name}"


def bundle(digest: str) -> str:
    """String: a model bundle by the SHA-256 of its bytes."""
    return f"{TAG}:bundle:{digest}"


def nudge(worker_id: str) -> str:
    """Pub/sub channel: a record that this worker owns has changed (a cancel)."""
    return f"{TAG}:nudge:{worker_id}"
