"""Sampling, stopping and output options of a request: bounds checked, the model's defaults filled in.

The bounds are those that the .proto files state. A knob of the API that this version does not serve is refused unless
it stands at the value that turns it off.
"""

import secrets

from contract.bundle import ModelBundle
from contract.messages import JobSampling, JobStopping
from llamaherd.v1 import common_pb2
from service.violations import Violations

MAX_TEMPERATURE = 100.0
MAX_CHOICES = 16
MAX_LOGIT_BIASES = 1024
MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_BYTES = 256
MAX_STOP_TOKEN_IDS = 64
DEFAULT_MAX_TIME_MS = 3_600_000
DEFAULT_MAX_NEW_TOKENS = 1024


def resolve_sampling(sampling: common_pb2.Sampling, bundle: ModelBundle, violations: Violations) -> JobSampling:
    """How tokens are drawn; only meaningful if no violation was added."""
    path = "spec.sampling"
    if sampling.HasField("temperature"):
        violations.check_range(f"{path}.temperature", sampling.temperature, 0, MAX_TEMPERATURE)
    if sampling.HasField("top_k"):
        violations.check_range(f"{path}.top_k", sampling.top_k, 0, bundle.vocab_size)
    if sampling.HasField("top_p"):
        violations.check_range(f"{path}.top_p", sampling.top_p, 0, 1, over_low=True)
    _refuse_sampling(sampling, bundle, violations)
    defaults = bundle.defaults
    temperature = 1.0 if defaults.temperature is None else defaults.temperature
    if defaults.do_sample is False:
        temperature = 0.0
    top_k = min(defaults.top_k or 0, bundle.vocab_size)
    return JobSampling(
        temperature=sampling.temperature if sampling.HasField("temperature") else temperature,
        top_k=sampling.top_k if sampling.HasField("top_k") else top_k,
        top_p=sampling.top_p if sampling.HasField("top_p") else defaults.top_p or 1.0,
        seed=sampling.seed if sampling.HasField("seed") else secrets.randbits(64),
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
    _refuse_stopping(stopping, bundle, violations)


def check_fit(stopping: common_pb2.Stopping, num_prompt: int, bundle: ModelBundle, violations: Violations) -> None:
    """Prompt and output must fit the context, and what the request allows of it."""
    path, context = "spec.stopping", bundle.context_length
    if stopping.HasField("max_total_tokens") and 1 <= stopping.max_total_tokens <= num_prompt:
        text = f"is {stopping.max_total_tokens}; the prompt alone has {num_prompt} tokens, and one must follow"
        violations.add(f"{path}.max_total_tokens", text)
    if stopping.max_new_tokens <= context < num_prompt + stopping.max_new_tokens:
        text = f"is {stopping.max_new_tokens}; the prompt has {num_prompt} tokens and the context {context}"
        violations.add(f"{path}.max_new_tokens", text)


def resolve_stopping(stopping: common_pb2.Stopping, num_prompt: int, bundle: ModelBundle) -> JobStopping:
    """When the generation ends, given a request that passed the checks."""
    wanted = (
        stopping.max_new_tokens if stopping.HasField("max_new_tokens") else _default_max_new_tokens(num_prompt, bundle)
    )
    total = stopping.max_total_tokens if stopping.HasField("max_total_tokens") else bundle.context_length
    return JobStopping(
        max_new_tokens=min(wanted, total - num_prompt),
        max_time_ms=stopping.max_time_ms if stopping.HasField("max_time_ms") else DEFAULT_MAX_TIME_MS,
        stop_strings=tuple(stopping.stop_strings),
    )


def check_output(output: common_pb2.OutputOptions, violations: Violations) -> None:
    """The options that are served now: logprobs of the chosen tokens."""
    path = "spec.output"
    if output.top_logprobs and violations.check_range(f"{path}.top_logprobs", output.top_logprobs, 0, MAX_TOP_LOGPROBS):
        violations.refuse(f"{path}.top_logprobs")
    for name in ("echo", "prompt_logprobs"):
        if getattr(output, name):
            violations.refuse(f"{path}.{name}")


def _default_max_new_tokens(num_prompt: int, bundle: ModelBundle) -> int:
    """The model's own bound; without one a moderate answer, or what its bound on the whole leaves."""
    defaults = bundle.defaults
    if defaults.max_new_tokens:
        return defaults.max_new_tokens
    left = defaults.max_length - num_prompt if defaults.max_length else DEFAULT_MAX_NEW_TOKENS
    return max(1, min(left, DEFAULT_MAX_NEW_TOKENS))


def _refuse_sampling(sampling: common_pb2.Sampling, bundle: ModelBundle, violations: Violations) -> None:
    path = "spec.sampling"
    unserved = (  # name, off, low, high, whether the low end is excluded
        ("min_p", 0.0, 0.0, 1.0, False),
        ("typical_p", 1.0, 0.0, 1.0, True),
        ("repetition_penalty", 1.0, 0.0, 100.0, True),
        ("frequency_penalty", 0.0, -100.0, 100.0, False),
        ("presence_penalty", 0.0, -100.0, 100.0, False),
        ("n", 1, 1, MAX_CHOICES, False),
    )
    for name, off, low, high, over_low in unserved:
        if not sampling.HasField(name):
            continue
        value = getattr(sampling, name)
        if violations.check_range(f"{path}.{name}", value, low, high, over_low=over_low) and value != off:
            violations.refuse(f"{path}.{name}")
    if sampling.logit_bias:
        _check_logit_bias(sampling, bundle, violations)


def _check_logit_bias(sampling: common_pb2.Sampling, bundle: ModelBundle, violations: Violations) -> None:
    path = "spec.sampling.logit_bias"
    if len(sampling.logit_bias) > MAX_LOGIT_BIASES:
        violations.add(path, f"has {len(sampling.logit_bias)} entries; at most {MAX_LOGIT_BIASES}")
    for id_, bias in sorted(sampling.logit_bias.items())[:MAX_LOGIT_BIASES]:
        if id_ >= bundle.vocab_size:
            violations.add(f"{path}[{id_}]", f"is no id of this model; ids are 0 to {bundle.vocab_size - 1}")
        violations.check_range(f"{path}[{id_}]", bias, -100, 100)
    violations.refuse(path)


def _refuse_stopping(stopping: common_pb2.Stopping, bundle: ModelBundle, violations: Violations) -> None:
    path = "spec.stopping"
    if stopping.min_new_tokens:
        violations.refuse(f"{path}.min_new_tokens")
    if stopping.ignore_eos:
        violations.refuse(f"{path}.ignore_eos")
    if stopping.stop_token_ids:
        if len(stopping.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            violations.add(
                f"{path}.stop_token_ids", f"has {len(stopping.stop_token_ids)}; at most {MAX_STOP_TOKEN_IDS}"
            )
        if (highest := max(stopping.stop_token_ids)) >= bundle.vocab_size:
            violations.add(f"{path}.stop_token_ids", f"has {highest}; ids are 0 to {bundle.vocab_size - 1}")
        violations.refuse(f"{path}.stop_token_ids")
