"""The messages of a generation's stream, each serialized: what a stream's entries become on the wire.

Only token messages may be joined by concatenation; every other event is a message of its own.
"""

from collections.abc import Collection, Sequence

from contract.errors import DeadlinePassed, GenerationFailed, PoisonJob, ServeError, Unreadable
from contract.messages import UNREADABLE, AttemptMark, ChoiceEnd, Ending, EndReason, Job, MalformedMessage, Times
from llamaherd.v1 import common_pb2, generation_pb2

MAX_UINT32 = 2**32 - 1

_Response = generation_pb2.GenerateResponse
_REASONS = {name.removeprefix("FINISH_REASON_"): name for name in common_pb2.FinishReason.keys()}  # noqa: SIM118  an enum


def accepted(job: Job) -> bytes:
    """First."""
    return _Response(accepted=accepted_of(job)).SerializeToString()


def queued(position: int, wait_s: float | None) -> bytes:
    """While it waits: how many stand before it, and how long that takes if it is known."""
    message = common_pb2.Queued(position=position)
    if wait_s is not None:
        message.estimated_wait_ms = min(round(wait_s * 1000), MAX_UINT32)
    return _Response(queued=message).SerializeToString()


def started(mark: AttemptMark) -> bytes:
    """A worker began or goes on."""
    return _Response(started=common_pb2.Started(attempt=mark.attempt)).SerializeToString()


def choice_finished(end: ChoiceEnd) -> bytes:
    """One choice is complete."""
    return _Response(choice_finished=finish_of(end)).SerializeToString()


def completed(ending: Ending, job: Job) -> bytes:
    """Last."""
    return _Response(
        completed=common_pb2.Completed(
            usage=usage_of(ending, job), timings=timings_of(ending.times), attempts=ending.attempts
        )
    ).SerializeToString()


def accepted_of(job: Job) -> common_pb2.Accepted:
    """The id, and the settings with every default filled in."""
    return common_pb2.Accepted(
        generation_id=job.generation_id, prompt_tokens=len(job.prompt_ids), settings=settings_of(job)
    )


def finish_of(end: ChoiceEnd) -> common_pb2.ChoiceFinished:
    """How a choice ended, as the API says it. Raises MalformedMessage for a reason that the API does not have."""
    if (reason := _REASONS.get(end.reason)) is None:
        raise MalformedMessage(f"choice {end.choice} ended with {end.reason!r}")
    return common_pb2.ChoiceFinished(
        choice=end.choice,
        reason=reason,
        stop_string=end.stop_string,
        num_tokens=end.num_tokens,
        text=end.text,
    )


def usage_of(ending: Ending, job: Job) -> common_pb2.Usage:
    """The counts of a finished generation."""
    return common_pb2.Usage(prompt_tokens=len(job.prompt_ids), output_tokens=job.num_output(ending.num_tokens))


def timings_of(times: Times) -> common_pb2.Timings:
    """Durations from points in time; a point that never came gives 0, and queueing then lasted to the end."""
    return common_pb2.Timings(
        queue_ms=max(0, (times.taken_ms or times.ended_ms) - times.accepted_ms),
        first_token_ms=max(0, times.first_token_ms - times.accepted_ms),
        decode_ms=max(0, times.last_token_ms - times.first_token_ms),
        total_ms=max(0, times.ended_ms - times.accepted_ms),
    )


def settings_of(job: Job) -> common_pb2.Settings:
    """What a job really uses: the smaller bound where two bound the same."""
    sampling = common_pb2.Sampling(
        temperature=job.sampling.temperature,
        top_k=job.sampling.top_k,
        top_p=job.sampling.top_p,
        min_p=job.sampling.min_p,
        typical_p=job.sampling.typical_p,
        repetition_penalty=job.sampling.repetition_penalty,
        frequency_penalty=job.sampling.frequency_penalty,
        presence_penalty=job.sampling.presence_penalty,
        logit_bias=dict(job.sampling.logit_bias),
        seed=job.sampling.seed,
        n=job.sampling.n,
    )
    stopping = common_pb2.Stopping(
        max_new_tokens=job.stopping.max_new_tokens,
        max_total_tokens=len(job.prompt_ids) + job.stopping.max_new_tokens,
        max_time_ms=job.stopping.max_time_ms,
        min_new_tokens=job.stopping.min_new_tokens,
        stop_strings=job.stopping.stop_strings,
        stop_token_ids=job.stopping.stop_token_ids,
        ignore_eos=job.stopping.ignore_eos,
    )
    output = common_pb2.OutputOptions(
        logprobs=job.logprobs, top_logprobs=job.top_logprobs, echo=job.echo, prompt_logprobs=job.prompt_logprobs
    )
    return common_pb2.Settings(model=job.model, sampling=sampling, stopping=stopping, output=output)


def is_ok(ending: Ending) -> bool:
    """Whether the stream ends with OK, and so with `completed`."""
    return ending.reason in (EndReason.DONE, EndReason.CANCELLED)


def ends_of(ending: Ending, num_tokens: Sequence[int], told_choices: Collection[int] = ()) -> list[ChoiceEnd]:
    """How the choices ended that no earlier row has told; a cancel from outside ends those that were running.

    Args:
        num_tokens: of each choice.
        told_choices: whose ends have been told.
    """
    ends = [end for end in ending.choice_ends if end.choice not in told_choices]
    if ending.reason is EndReason.CANCELLED:
        told = {end.choice for end in ending.choice_ends} | set(told_choices)
        ends += [
            ChoiceEnd(choice, EndReason.CANCELLED.value, count)
            for choice, count in enumerate(num_tokens)
            if choice not in told
        ]
    return ends


def error_of(ending: Ending, generation_id: str) -> ServeError | None:
    """The error a stream ends with; None where it ends with OK."""
    match ending.reason:
        case EndReason.DONE | EndReason.CANCELLED:
            return None
        case EndReason.DEADLINE:
            return DeadlinePassed("before the generation ended")
        case EndReason.POISON:
            return PoisonJob(ending.attempts)
        case EndReason.FAILED:
            if ending.error == UNREADABLE:
                return Unreadable(generation_id, "it was set aside")
            return GenerationFailed(generation_id, ending.attempts)
