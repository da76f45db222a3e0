"""What a generation's RPC says of itself, on its span and to the metrics: settings, counts and times, never texts."""

from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from contract.errors import ServeError
from contract.messages import Ending, Job
from service import metrics, status
from telemetry import names


def describe_operation(*, is_chat: bool, is_stream: bool) -> None:
    """What kind of RPC this is."""
    operation = names.OPERATION_CHAT if is_chat else names.OPERATION_TEXT
    metrics.note_operation(operation)
    trace.get_current_span().set_attributes(
        {
            names.ATTR_OPERATION: operation,
            names.ATTR_PROVIDER: names.PROVIDER,
            names.ATTR_REQUEST_STREAM: is_stream,
        }
    )


def describe_job(job: Job) -> None:
    """What will be used."""
    metrics.note_job(job.model, len(job.prompt_ids))
    trace.get_current_span().set_attributes(
        {
            names.ATTR_GENERATION_ID: job.generation_id,
            names.ATTR_RESPONSE_ID: job.generation_id,
            names.ATTR_REQUEST_MODEL: job.model,
            names.ATTR_RESPONSE_MODEL: job.model,
            names.ATTR_PRIORITY: job.job_class,
            names.ATTR_REQUEST_TEMPERATURE: job.sampling.temperature,
            names.ATTR_REQUEST_TOP_P: job.sampling.top_p,
            names.ATTR_REQUEST_TOP_K: job.sampling.top_k,
            names.ATTR_REQUEST_SEED: str(job.sampling.seed),  # 64 bits, unsigned: more than an attribute's integer
            names.ATTR_REQUEST_MAX_TOKENS: job.stopping.max_new_tokens,
            names.ATTR_PROMPT_TOKENS: len(job.prompt_ids),
        }
    )


def describe_first_token(after_s: float) -> None:
    """When the first token was given to the client, in seconds after the RPC began."""
    metrics.note_first_token(after_s)
    trace.get_current_span().set_attribute(names.ATTR_TIME_TO_FIRST_CHUNK, after_s)


def describe_ending(ending: Ending, job: Job) -> None:
    """What came out."""
    metrics.note_ending(ending, job)
    reasons = [end.reason for end in ending.choice_ends] or [ending.reason.value]
    trace.get_current_span().set_attributes(
        {
            names.ATTR_OUTPUT_TOKENS: job.num_output(ending.num_tokens),
            names.ATTR_FINISH_REASONS: reasons,
            names.ATTR_ATTEMPT: ending.attempts,
        }
    )


def describe_failure(error: ServeError) -> None:
    """A turn ended so, on a stream that may go on; what ends a whole RPC is described there."""
    row = status.row_of(error)
    metrics.note_failure(row.reason)
    span = trace.get_current_span()
    span.set_attribute(names.ATTR_ERROR_TYPE, row.reason)
    if status.is_fault(row.code.name):
        span.set_status(Status(StatusCode.ERROR, row.reason))
