import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from llamaherd.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerationState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GENERATION_STATE_UNSPECIFIED: _ClassVar[GenerationState]
    GENERATION_STATE_QUEUED: _ClassVar[GenerationState]
    GENERATION_STATE_RUNNING: _ClassVar[GenerationState]
    GENERATION_STATE_FINISHED: _ClassVar[GenerationState]
    GENERATION_STATE_FAILED: _ClassVar[GenerationState]
GENERATION_STATE_UNSPECIFIED: GenerationState
GENERATION_STATE_QUEUED: GenerationState
GENERATION_STATE_RUNNING: GenerationState
GENERATION_STATE_FINISHED: GenerationState
GENERATION_STATE_FAILED: GenerationState

class GenerateRequest(_message.Message):
    __slots__ = ("spec", "request_id")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    spec: _common_pb2.GenerationSpec
    request_id: str
    def __init__(self, spec: _Optional[_Union[_common_pb2.GenerationSpec, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("tokens", "accepted", "queued", "started", "choice_finished", "completed")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FINISHED_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[_common_pb2.Token]
    accepted: _common_pb2.Accepted
    queued: _common_pb2.Queued
    started: _common_pb2.Started
    choice_finished: _common_pb2.ChoiceFinished
    completed: _common_pb2.Completed
    def __init__(self, tokens: _Optional[_Iterable[_Union[_common_pb2.Token, _Mapping]]] = ..., accepted: _Optional[_Union[_common_pb2.Accepted, _Mapping]] = ..., queued: _Optional[_Union[_common_pb2.Queued, _Mapping]] = ..., started: _Optional[_Union[_common_pb2.Started, _Mapping]] = ..., choice_finished: _Optional[_Union[_common_pb2.ChoiceFinished, _Mapping]] = ..., completed: _Optional[_Union[_common_pb2.Completed, _Mapping]] = ...) -> None: ...

class CompleteRequest(_message.Message):
    __slots__ = ("spec", "request_id")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    spec: _common_pb2.GenerationSpec
    request_id: str
    def __init__(self, spec: _Optional[_Union[_common_pb2.GenerationSpec, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class CompleteResponse(_message.Message):
    __slots__ = ("generation_id", "choices", "settings", "usage", "timings")
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    generation_id: str
    choices: _containers.RepeatedCompositeFieldContainer[CompletedChoice]
    settings: _common_pb2.Settings
    usage: _common_pb2.Usage
    timings: _common_pb2.Timings
    def __init__(self, generation_id: _Optional[str] = ..., choices: _Optional[_Iterable[_Union[CompletedChoice, _Mapping]]] = ..., settings: _Optional[_Union[_common_pb2.Settings, _Mapping]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., timings: _Optional[_Union[_common_pb2.Timings, _Mapping]] = ...) -> None: ...

class CompletedChoice(_message.Message):
    __slots__ = ("text", "tokens", "finished")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    text: str
    tokens: _containers.RepeatedCompositeFieldContainer[_common_pb2.Token]
    finished: _common_pb2.ChoiceFinished
    def __init__(self, text: _Optional[str] = ..., tokens: _Optional[_Iterable[_Union[_common_pb2.Token, _Mapping]]] = ..., finished: _Optional[_Union[_common_pb2.ChoiceFinished, _Mapping]] = ...) -> None: ...

class SubmitGenerationRequest(_message.Message):
    __slots__ = ("spec", "request_id")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    spec: _common_pb2.GenerationSpec
    request_id: str
    def __init__(self, spec: _Optional[_Union[_common_pb2.GenerationSpec, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class SubmitGenerationResponse(_message.Message):
    __slots__ = ("accepted",)
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    accepted: _common_pb2.Accepted
    def __init__(self, accepted: _Optional[_Union[_common_pb2.Accepted, _Mapping]] = ...) -> None: ...

class GetGenerationRequest(_message.Message):
    __slots__ = ("generation_id",)
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    generation_id: str
    def __init__(self, generation_id: _Optional[str] = ...) -> None: ...

class GetGenerationResponse(_message.Message):
    __slots__ = ("generation_id", "state", "choices", "attempts", "usage", "timings", "error_reason", "accept_time")
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    ERROR_REASON_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_TIME_FIELD_NUMBER: _ClassVar[int]
    generation_id: str
    state: GenerationState
    choices: _containers.RepeatedCompositeFieldContainer[CompletedChoice]
    attempts: int
    usage: _common_pb2.Usage
    timings: _common_pb2.Timings
    error_reason: str
    accept_time: _timestamp_pb2.Timestamp
    def __init__(self, generation_id: _Optional[str] = ..., state: _Optional[_Union[GenerationState, str]] = ..., choices: _Optional[_Iterable[_Union[CompletedChoice, _Mapping]]] = ..., attempts: _Optional[int] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., timings: _Optional[_Union[_common_pb2.Timings, _Mapping]] = ..., error_reason: _Optional[str] = ..., accept_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class AttachRequest(_message.Message):
    __slots__ = ("generation_id", "from_position", "chain")
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_POSITION_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    generation_id: str
    from_position: int
    chain: int
    def __init__(self, generation_id: _Optional[str] = ..., from_position: _Optional[int] = ..., chain: _Optional[int] = ...) -> None: ...

class AttachResponse(_message.Message):
    __slots__ = ("tokens", "accepted", "queued", "started", "choice_finished", "completed")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FINISHED_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[_common_pb2.Token]
    accepted: _common_pb2.Accepted
    queued: _common_pb2.Queued
    started: _common_pb2.Started
    choice_finished: _common_pb2.ChoiceFinished
    completed: _common_pb2.Completed
    def __init__(self, tokens: _Optional[_Iterable[_Union[_common_pb2.Token, _Mapping]]] = ..., accepted: _Optional[_Union[_common_pb2.Accepted, _Mapping]] = ..., queued: _Optional[_Union[_common_pb2.Queued, _Mapping]] = ..., started: _Optional[_Union[_common_pb2.Started, _Mapping]] = ..., choice_finished: _Optional[_Union[_common_pb2.ChoiceFinished, _Mapping]] = ..., completed: _Optional[_Union[_common_pb2.Completed, _Mapping]] = ...) -> None: ...

class CancelGenerationRequest(_message.Message):
    __slots__ = ("generation_id",)
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    generation_id: str
    def __init__(self, generation_id: _Optional[str] = ...) -> None: ...

class CancelGenerationResponse(_message.Message):
    __slots__ = ("state", "reason")
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    state: GenerationState
    reason: _common_pb2.FinishReason
    def __init__(self, state: _Optional[_Union[GenerationState, str]] = ..., reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ...) -> None: ...
