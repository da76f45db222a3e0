"""The llamaherd client: generations as unbroken streams, for threads and for asyncio.

- `spec.py`        arguments to a GenerationSpec
- `calls.py`       each method as the call it makes
- `chat.py`        a conversation, and each of its turns as something to read
- `methods.py`     the methods, bound to both clients
- `resume.py`      one generation over many calls: what was read, what to ask for next
- `tries.py`       whether, when and where to try again
- `connection.py`  addresses, TLS, key, the settings of a connection
- `deltas.py`      what a stream's user sees
- `errors.py`      every way a call can fail
- `sync.py`, `aio.py`  the I/O, and nothing else
"""

from llamaherd.client.aio import AsyncChat, AsyncClient, AsyncStream
from llamaherd.client.connection import Tls
from llamaherd.client.deltas import Delta
from llamaherd.client.errors import (
    BrokerDown,
    Cancelled,
    ConnectionBroken,
    DataLoss,
    DeadlineExceeded,
    DeadlineTooShort,
    Draining,
    FieldViolation,
    GenerationFailed,
    HerdError,
    InternalError,
    InvalidRequest,
    NotAllowed,
    NotFound,
    NoWorker,
    Overloaded,
    PoisonJob,
    PositionAhead,
    QuotaExceeded,
    ReaderStalled,
    RequestIdReused,
    SessionTaken,
    TurnRunning,
    Unavailable,
    Unimplemented,
    UnknownGeneration,
    UnknownModel,
    UnknownSession,
)
from llamaherd.client.spec import ChatKnobs, Input, Knobs, assistant, system, user
from llamaherd.client.sync import Chat, Client, Stream

__all__ = [
    "AsyncChat",
    "AsyncClient",
    "AsyncStream",
    "BrokerDown",
    "Cancelled",
    "Chat",
    "ChatKnobs",
    "Client",
    "ConnectionBroken",
    "DataLoss",
    "DeadlineExceeded",
    "DeadlineTooShort",
    "Delta",
    "Draining",
    "FieldViolation",
    "GenerationFailed",
    "HerdError",
    "Input",
    "InternalError",
    "InvalidRequest",
    "Knobs",
    "NoWorker",
    "NotAllowed",
    "NotFound",
    "Overloaded",
    "PoisonJob",
    "PositionAhead",
    "QuotaExceeded",
    "ReaderStalled",
    "RequestIdReused",
    "SessionTaken",
    "Stream",
    "Tls",
    "TurnRunning",
    "Unavailable",
    "Unimplemented",
    "UnknownGeneration",
    "UnknownModel",
    "UnknownSession",
    "assistant",
    "system",
    "user",
]
