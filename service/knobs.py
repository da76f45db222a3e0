"""Sampling, stopping and output options of a request: bounds checked, the model's defaults filled in.

The bounds are those that the .proto files state.
"""

import secrets
from functools import lru_cache

from contract.bundle import SAMPLING_RANGES, GenerationDefaults, ModelBundle
from contract.messages import Job, JobSampling, JobStopping
from llamaherd.v1 import common_pb2
from service.violations import Violations

MAX_CHOICES = 16
MAX_LOGIT_BIASES = 1024
MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_BYTES = 256
MAX_STOP_TOKEN_IDS = 64
DEFAULT_MAX_TIME_MS = 3_600_000
DEFAULT_MAX_NEW_TOKENS = 1024
TOKEN_LOG_BYTES = 64  # of a token in the log with all that belongs to it, roughly
ALTERNATIVE_LOG_BYTES = 32  # of each of its top_logprobs

_RANGES = {
    **SAMPLING_RANGES,
    "frequency_penalty": (-100, 100, False),
    "presence_penalty": (-100, 100, False),
    "n": (1, MAX_CHOICES, False),
}


def resolve_sampling(sampling: common_pb2.Sampling, bundle: ModelBundle, violations: Violations) -> JobSampling:
    """How tokens are drawn; only meaningful if no violation was added."""
    path = "spec.sampling"
    for name, (low, high, over_low) in _RANGES.items():
        if sampling.HasField(name):
            violations.check_range(f"{path}.{name}", getattr(sampling, name), low, high, over_low=over_low)
    if sampling.HasField("top_k"):
        violations.check_range(f"{path}.top_k", sampling.top_k, 0, bundle.vocab_size)
    _check_logit_bias(sampling, bundle, violations)
    used = common_pb2.Sampling()  # a message, so that defaults have the precision of what is echoed
    used.CopyFrom(_default_sampling(bundle.defaults, bundle.vocab_size))
    used.MergeFrom(sampling)
    return JobSampling(
        temperature=used.temperature,
        top_k=used.top_k,
        top_p=used.top_p,
        seed=used.seed if used.HasField("seed") else secrets.randbits(64),
        min_p=used.min_p,
        typical_p=used.typical_p,
        repetition_penalty=used.repetition_penalty,
        frequency_penalty=used.frequency_penalty,
        presence_penalty=used.presence_penalty,
        logit_bias=tuple(sorted(used.logit_bias.items())),
        n=used.n,
    )


def check_stopping(stopping: common_pb2.Stopping, bundle: ModelBundle, violations: Violations) -> None:
    """The bounds that do not depend on the prompt."""
    path = "spec.stopping"
    if stopping.HasField("max_new_tokens"):
        violations.check_range(f"{path}.max_new_tokens", stopping.max_new_tokens, 1, bundle.context_length)
    if stopping.HasField("max_total_tokens"):
        violations.check_range(f"{path}.max_total_tokens", stopping.max_total_tokens, 1, bundle.context_length)
    if stopping.HasField("max_time_ms") and stopping.max_time_ms == 0:
        violations.add(f"{path}.max_time_ms", "is 0; at least 1")
    if len(stopping.stop_strings) > MAX_STOP_STRINGS:
        violations.add(f"{path}.stop_strings", f"has {len(stopping.stop_strings)}; at most {MAX_STOP_STRINGS}")
    for index, text in enumerate(stopping.stop_strings[:MAX_STOP_STRINGS]):
        if not text:
            violations.add(f"{path}.stop_strings[{index}]", "is empty")
        elif (size := len(text.encode())) > MAX_STOP_STRING_BYTES:
            violations.add(f"{path}.stop_strings[{index}]", f"has {size} bytes; at most {MAX_STOP_STRING_BYTES}")
    if len(stopping.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        violations.add(f"{path}.stop_token_ids", f"has {len(stopping.stop_token_ids)}; at most {MAX_STOP_TOKEN_IDS}")
    if (highest := max(stopping.stop_token_ids, default=0)) >= bundle.vocab_size:
        violations.add(f"{path}.stop_token_ids", f"has {highest}; ids are 0 to {bundle.vocab_size - 1}")


def check_fit(stopping: common_pb2.Stopping, num_prompt: int, bundle: ModelBundle, violations: Violations) -> None:
    """Prompt and output must fit the context, and what the request allows of it."""
    path, context = "spec.stopping", bundle.context_length
    if stopping.HasField("max_total_tokens") and 1 <= stopping.max_total_tokens <= num_prompt:
        text = f"is {stopping.max_total_tokens}; the prompt alone has {num_prompt} tokens, and one must follow"
        violations.add(f"{path}.max_total_tokens", text)
    if stopping.max_new_tokens <= context < num_prompt + stopping.max_new_tokens:
        text = f"is {stopping.max_new_tokens}; the prompt has {num_prompt} tokens and the context {context}"
        violations.add(f"{path}.max_new_tokens", text)
    if stopping.min_new_tokens > max(0, most := _max_new_tokens(stopping, num_prompt, bundle)):
        text = f"is {stopping.min_new_tokens}; max_new_tokens comes to {most} after {num_prompt} of the prompt"
        violations.add(f"{path}.min_new_tokens", text)


def resolve_stopping(stopping: common_pb2.Stopping, num_prompt: int, bundle: ModelBundle) -> JobStopping:
    """When the generation ends, given a request that passed the checks."""
    return JobStopping(
        max_new_tokens=_max_new_tokens(stopping, num_prompt, bundle),
        max_time_ms=stopping.max_time_ms if stopping.HasField("max_time_ms") else DEFAULT_MAX_TIME_MS,
        stop_strings=tuple(stopping.stop_strings),
        min_new_tokens=stopping.min_new_tokens,
        stop_token_ids=tuple(stopping.stop_token_ids),
        ignore_eos=stopping.ignore_eos,
    )


def check_output(output: common_pb2.OutputOptions, violations: Violations) -> None:
    """What comes back beyond text."""
    path = "spec.output"
    violations.check_range(f"{path}.top_logprobs", output.top_logprobs, 0, MAX_TOP_LOGPROBS)
    if output.prompt_logprobs and not output.echo:
        violations.add(f"{path}.prompt_logprobs", "is set without echo: no token would carry them")


def check_log_size(job: Job, max_log_bytes: int, violations: Violations) -> None:
    """A log is never trimmed, so that its size is bounded before it begins."""
    if (size := log_size(job)) > max_log_bytes:
        text = f"is too much: {_amount_of(job)}, may take {size} bytes of log; at most {max_log_bytes}"
        violations.add(_costliest_field(job), text)


def check_answer_size(job: Job, max_answer_bytes: int, violations: Violations) -> None:
    """What is answered at once must be a message that clients take: better told now than when all is computed."""
    if (size := log_size(job)) > max_answer_bytes:
        text = f"is too much for one answer: {_amount_of(job)}, may take {size} bytes; at most {max_answer_bytes}"
        violations.add(_costliest_field(job), f"{text}. Generate streams it")


def log_size(job: Job) -> int:
    """Bytes that the tokens of a job may take, in the log or in an answer, roughly."""
    num_tokens, alternatives = job.num_choices * job.stopping.max_new_tokens, job.top_logprobs * ALTERNATIVE_LOG_BYTES
    size = num_tokens * (TOKEN_LOG_BYTES + alternatives)
    return size + job.num_echoed * (TOKEN_LOG_BYTES + (alternatives if job.prompt_logprobs else 0))


def _costliest_field(job: Job) -> str:
    if job.num_choices > 1:
        return "spec.sampling.n"
    return "spec.output.top_logprobs" if job.top_logprobs else "spec.stopping.max_new_tokens"


def _amount_of(job: Job) -> str:
    return f"{job.num_choices} choices of {job.stopping.max_new_tokens} tokens, {job.top_logprobs} alternatives each"


def _max_new_tokens(stopping: common_pb2.Stopping, num_prompt: int, bundle: ModelBundle) -> int:
    """The smaller of both bounds; below 1 where the prompt leaves nothing."""
    has_bound = stopping.HasField("max_new_tokens")
    wanted = stopping.max_new_tokens if has_bound else _default_max_new_tokens(num_prompt, bundle)
    total = stopping.max_total_tokens if stopping.HasField("max_total_tokens") else bundle.context_length
    return min(wanted, total - num_prompt)


def _default_max_new_tokens(num_prompt: int, bundle: ModelBundle) -> int:
    """The model's own bound; without one a moderate answer, or what its bound on the whole leaves."""
    defaults = bundle.defaults
    if defaults.max_new_tokens:
        return defaults.max_new_tokens
    left = defaults.max_length - num_prompt if defaults.max_length else DEFAULT_MAX_NEW_TOKENS
    return max(1, min(left, DEFAULT_MAX_NEW_TOKENS))


@lru_cache(maxsize=64)
def _default_sampling(defaults: GenerationDefaults, vocab_size: int) -> common_pb2.Sampling:
    """What the model's generation_config.json asks for, and off where it says nothing. To be copied, never changed."""
    used = common_pb2.Sampling(
        temperature=1, top_k=0, top_p=1, min_p=0, typical_p=1, repetition_penalty=1, n=1,
        frequency_penalty=0, presence_penalty=0,
    )  # fmt: skip
    for name in SAMPLING_RANGES:
        if (value := getattr(defaults, name)) is not None:
            setattr(used, name, value)
    used.top_k = min(defaults.top_k or 0, vocab_size)
    if defaults.do_sample is False:
        used.temperature = 0
    return used


def _check_logit_bias(sampling: common_pb2.Sampling, bundle: ModelBundle, violations: Violations) -> None:
    path = "spec.sampling.logit_bias"
    if len(sampling.logit_bias) > MAX_LOGIT_BIASES:
        violations.add(path, f"has {len(sampling.logit_bias)} entries; at most {MAX_LOGIT_BIASES}")
    for id_, bias in sorted(sampling.logit_bias.items())[:MAX_LOGIT_BIASES]:
        if id_ >= bundle.vocab_size:
            violations.add(f"{path}[{id_}]", f"is no id of this model; ids are 0 to {bundle.vocab_size - 1}")
        violations.check_range(f"{path}[{id_}]", bias, -100, 100)
