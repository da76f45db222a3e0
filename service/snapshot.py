"""A whole generation in one message, gathered as its tokens come: what GetGeneration and Complete answer."""

import asyncio
from collections.abc import Iterable, Sequence

from google.protobuf import timestamp_pb2

from contract.broker import Broker, Record, State
from contract.errors import FieldViolation, InvalidRequest, UnknownGeneration
from contract.messages import ChoiceEnd
from llamaherd.v1 import common_pb2, generation_pb2
from service import events
from service.log_walk import walk_log
from service.status import row_of

MAX_ANSWER_BYTES = 4 * 1024 * 1024  # of a whole generation at once: what clients of every language take by default

STATES = {
    State.QUEUED: generation_pb2.GENERATION_STATE_QUEUED,
    State.RUNNING: generation_pb2.GENERATION_STATE_RUNNING,
    State.FREE: generation_pb2.GENERATION_STATE_RUNNING,  # between two workers
    State.FINISHED: generation_pb2.GENERATION_STATE_FINISHED,
}


class Gathered:
    """The choices of an answer, as their tokens come; each is touched once, so that no step takes long.

    Beyond MAX_ANSWER_BYTES nothing more is kept: then the answer is refused.

    Args:
        answer: gets the choices, and is packed at the end.
        asked_by: the field that names the generation, or asks for it.
    """

    def __init__(
        self,
        answer: generation_pb2.CompleteResponse | generation_pb2.GetGenerationResponse,
        num_choices: int,
        asked_by: str,
    ) -> None:
        self._answer = answer
        self._asked_by = asked_by
        self._choices = [answer.choices.add() for _ in range(num_choices)]
        self._texts: list[list[str]] = [[] for _ in range(num_choices)]
        self._num_bytes = 0

    @property
    def counts(self) -> list[int]:
        """Tokens of each choice."""
        return [len(choice.tokens) for choice in self._choices]

    def take(self, tokens: Iterable[common_pb2.Token], num_bytes: int) -> None:
        """The next tokens, which have at least so many bytes in the answer."""
        self._num_bytes += num_bytes
        if self._num_bytes > MAX_ANSWER_BYTES:
            return
        for token in tokens:
            self._choices[token.choice].tokens.append(token)
            self._texts[token.choice].append(token.text)

    def finish(self, finish: common_pb2.ChoiceFinished) -> None:
        """One choice has ended."""
        self._choices[finish.choice].finished.CopyFrom(finish)
        self._texts[finish.choice].append(finish.text)

    def refuse_if_too_large(self) -> None:
        """Raises InvalidRequest, once that is certain: nothing more need be taken then."""
        if self._num_bytes > MAX_ANSWER_BYTES:
            raise self._refusal(f"at least {self._num_bytes}")

    async def pack(self) -> bytes:
        """The answer. Raises InvalidRequest for one that its client's gRPC would not take, and not say why."""
        self.refuse_if_too_large()
        await asyncio.sleep(0)  # packing takes as long as the last page did: others go between
        for choice, texts in zip(self._choices, self._texts, strict=True):
            choice.text = "".join(texts)
        packed = self._answer.SerializeToString()
        if len(packed) > MAX_ANSWER_BYTES:
            raise self._refusal(str(len(packed)))
        return packed

    def _refusal(self, size: str) -> InvalidRequest:
        text = f"has an answer of {size} bytes; one message takes {MAX_ANSWER_BYTES}. Attach streams generation"
        return InvalidRequest([FieldViolation(self._asked_by, f"{text} {self._answer.generation_id}")])


async def snapshot_of(broker: Broker, generation_id: str, record: Record) -> bytes:
    """A generation as it stands: GetGenerationResponse. The log may be ahead of the record; its end tells the state.

    Raises InvalidRequest for one that is too large, UnknownGeneration if the log has expired, and as `walk_log` does.
    """
    answer = generation_pb2.GetGenerationResponse(
        generation_id=generation_id,
        state=STATES[record.state],
        attempts=record.attempt,
        accept_time=timestamp_pb2.Timestamp(
            seconds=record.accepted_ms // 1000, nanos=record.accepted_ms % 1000 * 1_000_000
        ),
    )
    gathered = Gathered(answer, record.job.num_choices, "generation_id")
    ends: list[ChoiceEnd] = []

    def take(tokens: Sequence[common_pb2.Token], num_bytes: int, row_ends: Sequence[ChoiceEnd]) -> None:
        gathered.take(tokens, num_bytes)
        gathered.refuse_if_too_large()
        ends.extend(row_ends)

    ending = await walk_log(broker.read_log_page, generation_id, take)
    if ending is not None:
        ends += events.ends_of(ending, gathered.counts, {end.choice for end in ends})
        answer.attempts = ending.attempts
        answer.usage.CopyFrom(events.usage_of(ending, record.job))
        answer.timings.CopyFrom(events.timings_of(ending.times))
        answer.state = generation_pb2.GENERATION_STATE_FINISHED
        if (error := events.error_of(ending, generation_id)) is not None:
            answer.state = generation_pb2.GENERATION_STATE_FAILED
            answer.error_reason = row_of(error).reason
    elif record.state is State.FINISHED:
        raise UnknownGeneration(generation_id)  # it expired between two calls
    for end in ends:
        gathered.finish(events.finish_of(end))
    return await gathered.pack()


async def text_of(broker: Broker, generation_id: str, shown: int | None) -> str:
    """The text of a finished generation of one choice, up to what its user had seen of it: so many tokens."""
    texts: list[str] = []
    ends: list[ChoiceEnd] = []

    def take(tokens: Sequence[common_pb2.Token], num_bytes: int, row_ends: Sequence[ChoiceEnd]) -> None:
        texts.extend(token.text for token in tokens)
        ends.extend(row_ends)

    ending = await walk_log(broker.read_log_page, generation_id, take)
    if shown is not None and shown < len(texts):
        return "".join(texts[:shown])
    if ending is not None:
        ends += events.ends_of(ending, [len(texts)], {end.choice for end in ends})
    return "".join([*texts, *(end.text for end in ends)])
