import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.rpc import status_pb2 as _status_pb2
from llamaherd.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ChatRequest(_message.Message):
    __slots__ = ("setup", "user_message", "interrupt", "end")
    SETUP_FIELD_NUMBER: _ClassVar[int]
    USER_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    INTERRUPT_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    setup: ChatSetup
    user_message: UserMessage
    interrupt: InterruptTurn
    end: EndSession
    def __init__(self, setup: _Optional[_Union[ChatSetup, _Mapping]] = ..., user_message: _Optional[_Union[UserMessage, _Mapping]] = ..., interrupt: _Optional[_Union[InterruptTurn, _Mapping]] = ..., end: _Optional[_Union[EndSession, _Mapping]] = ...) -> None: ...

class ChatSetup(_message.Message):
    __slots__ = ("model", "system_prompt", "sampling", "stopping", "resumption_handle", "from_position", "chain", "ttl_s")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOPPING_FIELD_NUMBER: _ClassVar[int]
    RESUMPTION_HANDLE_FIELD_NUMBER: _ClassVar[int]
    FROM_POSITION_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    model: str
    system_prompt: str
    sampling: _common_pb2.Sampling
    stopping: _common_pb2.Stopping
    resumption_handle: str
    from_position: int
    chain: int
    ttl_s: int
    def __init__(self, model: _Optional[str] = ..., system_prompt: _Optional[str] = ..., sampling: _Optional[_Union[_common_pb2.Sampling, _Mapping]] = ..., stopping: _Optional[_Union[_common_pb2.Stopping, _Mapping]] = ..., resumption_handle: _Optional[str] = ..., from_position: _Optional[int] = ..., chain: _Optional[int] = ..., ttl_s: _Optional[int] = ...) -> None: ...

class UserMessage(_message.Message):
    __slots__ = ("content", "request_id")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    content: str
    request_id: str
    def __init__(self, content: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class InterruptTurn(_message.Message):
    __slots__ = ("num_tokens_shown",)
    NUM_TOKENS_SHOWN_FIELD_NUMBER: _ClassVar[int]
    num_tokens_shown: int
    def __init__(self, num_tokens_shown: _Optional[int] = ...) -> None: ...

class EndSession(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ChatResponse(_message.Message):
    __slots__ = ("tokens", "ready", "queued", "started", "turn_finished", "turn_failed", "go_away", "resumption")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TURN_FINISHED_FIELD_NUMBER: _ClassVar[int]
    TURN_FAILED_FIELD_NUMBER: _ClassVar[int]
    GO_AWAY_FIELD_NUMBER: _ClassVar[int]
    RESUMPTION_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[_common_pb2.Token]
    ready: SessionReady
    queued: _common_pb2.Queued
    started: _common_pb2.Started
    turn_finished: TurnFinished
    turn_failed: TurnFailed
    go_away: GoAway
    resumption: Resumption
    def __init__(self, tokens: _Optional[_Iterable[_Union[_common_pb2.Token, _Mapping]]] = ..., ready: _Optional[_Union[SessionReady, _Mapping]] = ..., queued: _Optional[_Union[_common_pb2.Queued, _Mapping]] = ..., started: _Optional[_Union[_common_pb2.Started, _Mapping]] = ..., turn_finished: _Optional[_Union[TurnFinished, _Mapping]] = ..., turn_failed: _Optional[_Union[TurnFailed, _Mapping]] = ..., go_away: _Optional[_Union[GoAway, _Mapping]] = ..., resumption: _Optional[_Union[Resumption, _Mapping]] = ...) -> None: ...

class SessionReady(_message.Message):
    __slots__ = ("session_id", "resumption_handle", "num_turns", "settings", "generation_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RESUMPTION_HANDLE_FIELD_NUMBER: _ClassVar[int]
    NUM_TURNS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    resumption_handle: str
    num_turns: int
    settings: _common_pb2.Settings
    generation_id: str
    def __init__(self, session_id: _Optional[str] = ..., resumption_handle: _Optional[str] = ..., num_turns: _Optional[int] = ..., settings: _Optional[_Union[_common_pb2.Settings, _Mapping]] = ..., generation_id: _Optional[str] = ...) -> None: ...

class TurnFinished(_message.Message):
    __slots__ = ("turn", "finished", "usage", "timings", "num_turns_dropped")
    TURN_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    NUM_TURNS_DROPPED_FIELD_NUMBER: _ClassVar[int]
    turn: int
    finished: _common_pb2.ChoiceFinished
    usage: _common_pb2.Usage
    timings: _common_pb2.Timings
    num_turns_dropped: int
    def __init__(self, turn: _Optional[int] = ..., finished: _Optional[_Union[_common_pb2.ChoiceFinished, _Mapping]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., timings: _Optional[_Union[_common_pb2.Timings, _Mapping]] = ..., num_turns_dropped: _Optional[int] = ...) -> None: ...

class TurnFailed(_message.Message):
    __slots__ = ("turn", "status")
    TURN_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    turn: int
    status: _status_pb2.Status
    def __init__(self, turn: _Optional[int] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class GoAway(_message.Message):
    __slots__ = ("time_left",)
    TIME_LEFT_FIELD_NUMBER: _ClassVar[int]
    time_left: _duration_pb2.Duration
    def __init__(self, time_left: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Resumption(_message.Message):
    __slots__ = ("handle",)
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    handle: str
    def __init__(self, handle: _Optional[str] = ...) -> None: ...

class SendTurnRequest(_message.Message):
    __slots__ = ("setup", "session_handle", "user_message")
    SETUP_FIELD_NUMBER: _ClassVar[int]
    SESSION_HANDLE_FIELD_NUMBER: _ClassVar[int]
    USER_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    setup: ChatSetup
    session_handle: str
    user_message: UserMessage
    def __init__(self, setup: _Optional[_Union[ChatSetup, _Mapping]] = ..., session_handle: _Optional[str] = ..., user_message: _Optional[_Union[UserMessage, _Mapping]] = ...) -> None: ...

class SendTurnResponse(_message.Message):
    __slots__ = ("tokens", "ready", "queued", "started", "turn_finished")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TURN_FINISHED_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[_common_pb2.Token]
    ready: SessionReady
    queued: _common_pb2.Queued
    started: _common_pb2.Started
    turn_finished: TurnFinished
    def __init__(self, tokens: _Optional[_Iterable[_Union[_common_pb2.Token, _Mapping]]] = ..., ready: _Optional[_Union[SessionReady, _Mapping]] = ..., queued: _Optional[_Union[_common_pb2.Queued, _Mapping]] = ..., started: _Optional[_Union[_common_pb2.Started, _Mapping]] = ..., turn_finished: _Optional[_Union[TurnFinished, _Mapping]] = ...) -> None: ...

class InterruptRequest(_message.Message):
    __slots__ = ("session_handle", "num_tokens_shown")
    SESSION_HANDLE_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_SHOWN_FIELD_NUMBER: _ClassVar[int]
    session_handle: str
    num_tokens_shown: int
    def __init__(self, session_handle: _Optional[str] = ..., num_tokens_shown: _Optional[int] = ...) -> None: ...

class InterruptResponse(_message.Message):
    __slots__ = ("was_running",)
    WAS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    was_running: bool
    def __init__(self, was_running: bool = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("setup",)
    SETUP_FIELD_NUMBER: _ClassVar[int]
    setup: ChatSetup
    def __init__(self, setup: _Optional[_Union[ChatSetup, _Mapping]] = ...) -> None: ...

class OpenSessionResponse(_message.Message):
    __slots__ = ("ready",)
    READY_FIELD_NUMBER: _ClassVar[int]
    ready: SessionReady
    def __init__(self, ready: _Optional[_Union[SessionReady, _Mapping]] = ...) -> None: ...

class EndSessionRequest(_message.Message):
    __slots__ = ("session_handle",)
    SESSION_HANDLE_FIELD_NUMBER: _ClassVar[int]
    session_handle: str
    def __init__(self, session_handle: _Optional[str] = ...) -> None: ...

class EndSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
