"""A generation as it stands now, from its record and its log: what GetGeneration answers."""

from collections.abc import Iterable, Sequence

from google.protobuf import timestamp_pb2

from contract.broker import Record, State
from contract.messages import ChoiceEnd, Ending, LogEntry, TokenRow, decode_tokens
from llamaherd.v1 import common_pb2, generation_pb2
from service import events
from service.status import row_of

STATES = {
    State.QUEUED: generation_pb2.GENERATION_STATE_QUEUED,
    State.RUNNING: generation_pb2.GENERATION_STATE_RUNNING,
    State.FREE: generation_pb2.GENERATION_STATE_RUNNING,  # between two workers
    State.FINISHED: generation_pb2.GENERATION_STATE_FINISHED,
}


def snapshot_of(
    generation_id: str, record: Record, entries: Sequence[LogEntry]
) -> generation_pb2.GetGenerationResponse:
    """The log may be a moment ahead of the record; its end then tells the state."""
    answer = generation_pb2.GetGenerationResponse(
        generation_id=generation_id,
        state=STATES[record.state],
        attempts=record.attempt,
        accept_time=timestamp_pb2.Timestamp(
            seconds=record.accepted_ms // 1000, nanos=record.accepted_ms % 1000 * 1_000_000
        ),
    )
    tokens: list[common_pb2.Token] = []
    ends: list[ChoiceEnd] = []
    ending: Ending | None = None
    for entry in entries:
        match entry:
            case TokenRow():
                tokens += decode_tokens(entry.body)
                ends += entry.choice_ends
            case Ending():
                ending = entry
    if ending is not None:
        counts = [sum(token.choice == choice for token in tokens) for choice in range(record.job.num_choices)]
        ends += events.ends_of(ending, counts, {end.choice for end in ends})
        answer.attempts = ending.attempts
        answer.usage.CopyFrom(events.usage_of(ending, record.job))
        answer.timings.CopyFrom(events.timings_of(ending.times))
        answer.state = generation_pb2.GENERATION_STATE_FINISHED
        if (error := events.error_of(ending, generation_id)) is not None:
            answer.state = generation_pb2.GENERATION_STATE_FAILED
            answer.error_reason = row_of(error).reason
    answer.choices.extend(choices_of(record.job.num_choices, tokens, [events.finish_of(end) for end in ends]))
    return answer


def choices_of(
    num_choices: int, tokens: Iterable[common_pb2.Token], finishes: Iterable[common_pb2.ChoiceFinished]
) -> list[generation_pb2.CompletedChoice]:
    """The choices by number, each with its text, its tokens and, if it has ended, its end."""
    choices = [generation_pb2.CompletedChoice() for _ in range(num_choices)]
    texts = [""] * num_choices
    for token in tokens:
        choices[token.choice].tokens.append(token)
        texts[token.choice] += token.text
    for finish in finishes:
        choices[finish.choice].finished.CopyFrom(finish)
        texts[finish.choice] += finish.text
    for choice, text in zip(choices, texts, strict=True):
        choice.text = text
    return choices
