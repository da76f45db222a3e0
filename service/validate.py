"""GenerationSpec to Job: every bound checked, defaults filled in, the prompt encoded. Types are trusted afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass

from contract.messages import Job
from contract.trace import inject_context
from llamaherd.v1 import common_pb2
from service.encoding import EncodedPrompt
from service.knobs import (
    check_answer_size,
    check_fit,
    check_log_size,
    check_output,
    check_stopping,
    resolve_sampling,
    resolve_stopping,
)
from service.models import Models, ServedModel
from service.prompts import check_input, encode_input
from service.violations import Violations

MAX_REQUEST_ID_CHARS = 128
MAX_RESUME_WINDOW_MS = 600_000
DEFAULT_RESUME_WINDOW_MS = 30_000

_CLASSES = {
    common_pb2.PRIORITY_UNSPECIFIED: "normal",
    common_pb2.PRIORITY_HIGH: "high",
    common_pb2.PRIORITY_NORMAL: "normal",
    common_pb2.PRIORITY_LOW: "low",
}


@dataclass(frozen=True, slots=True)
class Call:
    """What the caller asked for, whichever RPC it came by."""

    caller: str
    spec: common_pb2.GenerationSpec
    request_id: str | None
    is_unread: bool = False  # it begins without a reader
    max_answer_bytes: int | None = None  # for one that is answered at once, in one message
    generation_id: str | None = None  # one that was chosen, and kept, before
    encoded: EncodedPrompt | None = None  # spec's input, where that was encoded before
    ends_s: float | None = None  # the RPC's deadline, on this process' monotonic clock

    @property
    def window_ms(self) -> int:
        """How long the generation goes on unread; 0 cancels it at once."""
        if self.spec.HasField("resume_window_ms"):
            return self.spec.resume_window_ms
        if self.is_unread:
            return MAX_RESUME_WINDOW_MS
        return 0 if self.request_id is None else DEFAULT_RESUME_WINDOW_MS


async def validate(call: Call, generation_id: str, models: Models, *, max_log_bytes: int) -> Job:
    """The job that `call` asks for.

    Args:
        max_log_bytes: what the token log of one generation may take.

    Raises:
        InvalidRequest: with every violation there is.
        UnknownModel, NoWorker, BrokerDown: the model is not there, or it cannot be known.
    """
    violations = Violations()
    spec = call.spec
    _check_call(call, violations)
    violations.raise_if_any()  # neither the model's name nor the prompt is of a size to go on with
    model = await models.get(models.name_of(spec.model))
    sampling = resolve_sampling(spec.sampling, model.bundle, violations)
    check_stopping(spec.stopping, model.bundle, violations)
    check_output(spec.output, violations)
    prompt_ids = await _encode(call, model, violations)
    if prompt_ids:
        check_fit(spec.stopping, len(prompt_ids), model.bundle, violations)
    violations.raise_if_any()
    job = Job(
        generation_id=generation_id,
        model=model.name,
        job_class=_CLASSES[spec.priority],
        prompt_ids=tuple(prompt_ids),
        sampling=sampling,
        stopping=resolve_stopping(spec.stopping, len(prompt_ids), model.bundle),
        strip_leading_space=spec.WhichOneof("input") == "chat",
        logprobs=spec.output.logprobs,
        trace_context=inject_context(),
        top_logprobs=spec.output.top_logprobs,
        echo=spec.output.echo,
        prompt_logprobs=spec.output.prompt_logprobs,
    )
    check_log_size(job, max_log_bytes, violations)
    if call.max_answer_bytes is not None:
        check_answer_size(job, call.max_answer_bytes, violations)
    violations.raise_if_any()
    return job


async def _encode(call: Call, model: ServedModel, violations: Violations) -> Sequence[int]:
    """The prompt's ids; [] if a violation was added."""
    max_tokens = model.bundle.context_length - 1
    if call.encoded is not None and call.encoded.digest == model.digest and len(call.encoded.ids) <= max_tokens:
        return call.encoded.ids
    return await encode_input(call.spec, model, violations, max_tokens=max_tokens)


def _check_call(call: Call, violations: Violations) -> None:
    """What needs no model."""
    spec = call.spec
    check_input(spec, violations)
    if call.request_id is not None and not 1 <= len(call.request_id) <= MAX_REQUEST_ID_CHARS:
        violations.add("request_id", f"has {len(call.request_id)} characters; 1 to {MAX_REQUEST_ID_CHARS}")
    if spec.priority not in _CLASSES:
        violations.add("spec.priority", f"is {spec.priority}, which is no priority")
    if spec.resume_window_ms > MAX_RESUME_WINDOW_MS:
        violations.add("spec.resume_window_ms", f"is {spec.resume_window_ms}; at most {MAX_RESUME_WINDOW_MS}")
    if call.is_unread and call.window_ms == 0:
        violations.add("spec.resume_window_ms", "is 0; at least 1 where nobody reads yet")
