"""What a gateway's process spends on long inputs: prompts too long for the context, long conversations, counts.

    python -m bench.long_inputs

Calls what the RPCs call, in this process, with the demo model's tokenizer and a context of 4,096. CPU is user and
system, all threads; the machine may be busy with other work. Of CountTokens the table has how long others wait, too.
"""

import asyncio
import dataclasses
import resource
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import cast

from contract.chat import Turn
from contract.errors import InvalidRequest
from llamaherd.v1 import chat_pb2, common_pb2, model_pb2
from service.chat_history import fit_history, spec_of
from service.context import Context
from service.model_servicer import ModelServicer
from service.models import Models, ServedModel
from service.tokenizer import PromptTokenizer
from service.validate import Call, validate
from worker.bundle import build_bundle

ROOT = Path(__file__).parents[1]
ROUNDS = 5
LOOK_S = 0.1
PROMPT_BYTES = 4 * 1024 * 1024 - 1024
Spec = common_pb2.GenerationSpec


class OneModel(Models):
    """`Models` that has one, and needs no Redis."""

    def __init__(self) -> None:
        bundle = build_bundle(ROOT / "herd/demo_model", quantization="int8")
        bundle = dataclasses.replace(bundle, context_length=4096)
        self.model = ServedModel("demo", bundle.digest, bundle, PromptTokenizer(bundle))

    def name_of(self, model: str, field: str = "spec.model") -> str:
        """Its name."""
        return model

    async def get(self, name: str) -> ServedModel:
        """It."""
        return self.model


async def measure(what: str, call: Callable[[], Awaitable[str]]) -> None:
    """Print a row: the least and the most CPU of some rounds, and what came of it."""
    spent_ms: list[float] = []
    for _ in range(ROUNDS):
        before_s = _cpu_s()
        said = await call()
        spent_ms.append(1e3 * (_cpu_s() - before_s))
        await asyncio.sleep(0)
    print(f"| {what} | {min(spent_ms):,.1f} to {max(spent_ms):,.1f} | {said} |", flush=True)


async def begun(models: OneModel, turns: Sequence[Turn]) -> str:
    """What becomes of a turn after these, up to its job."""
    setup = chat_pb2.ChatSetup(model="demo", system_prompt="Be kind.")
    fitted = await fit_history(setup, turns, "And what does that mean?", models.model)
    spec = spec_of(setup, fitted.messages, window_ms=1000, model="demo")
    job = await validate(Call("bench", spec, None, encoded=fitted.encoded), "0" * 32, models, max_log_bytes=1 << 24)
    return f"{len(turns) - fitted.num_dropped} turns of {len(turns)}, {len(job.prompt_ids)} tokens"


async def refused(models: OneModel, spec: Spec) -> str:
    """What the caller is told."""
    try:
        await validate(Call("bench", spec, None), "0" * 32, models, max_log_bytes=1 << 24)
    except InvalidRequest as error:
        return error.violations[0].description
    raise AssertionError("it was taken")


async def count_beside(models: OneModel, text: str, num_counts: int) -> None:
    """Print a row: so many CountTokens of a text under way, and how long a short prompt and a short count take then."""
    servicer = ModelServicer(models)
    waiting = cast("Context", None)  # of which CountTokens needs nothing

    def count(prompt: str) -> Awaitable[model_pb2.CountTokensResponse]:
        request = model_pb2.CountTokensRequest(spec=Spec(model="demo", prompt=prompt))
        return servicer.count_tokens(request, waiting)

    before_s, started_s = _cpu_s(), time.monotonic()
    counts = [asyncio.ensure_future(count(text)) for _ in range(num_counts)]
    took_ms: dict[str, list[float]] = {"prompt": [], "count": []}
    while not took_ms["prompt"] or not all(each.done() for each in counts):
        await asyncio.sleep(LOOK_S)
        at_s = time.monotonic()
        await validate(Call("bench", Spec(model="demo", prompt="Hello"), None), "0" * 32, models, max_log_bytes=1 << 24)
        took_ms["prompt"].append(1e3 * (time.monotonic() - at_s))
        at_s = time.monotonic()
        await count("Hello")
        took_ms["count"].append(1e3 * (time.monotonic() - at_s))
    cpu_s, all_s = _cpu_s() - before_s, time.monotonic() - started_s
    waits = " | ".join(f"{sorted(each)[len(each) // 2]:,.1f} / {max(each):,.1f}" for each in took_ms.values())
    print(f"| {num_counts} of {len(text):,} bytes | {cpu_s:.1f} | {all_s:.1f} | {waits} |", flush=True)


async def main() -> None:
    """All rows."""
    models = OneModel()
    line = "The herd holds a model, and a token is in the log before a client sees it.\n"
    text = line * (PROMPT_BYTES // len(line))
    message = common_pb2.ChatMessage(role=common_pb2.ROLE_USER, content=text)
    specs = {
        "a prompt of 4 MiB": Spec(model="demo", prompt=text),
        "a conversation of 4 MiB": Spec(model="demo", chat=common_pb2.ChatInput(messages=[message])),
        "4,000,000 token ids": Spec(model="demo", token_ids=common_pb2.TokenIds(ids=[7] * 4_000_000)),
        "a prompt of 60,000 bytes": Spec(model="demo", prompt=text[:60_000]),
        "a prompt of 40,000 bytes": Spec(model="demo", prompt=text[:40_000]),
    }
    started_s = time.monotonic()
    print("| input | CPU, ms | told |\n|---|---|---|")
    for what, spec in specs.items():
        await measure(what, lambda spec=spec: refused(models, spec))  # type: ignore[misc]  # its default is the loop's value
    print("| turn after | CPU, ms | its prompt |\n|---|---|---|")
    for num_turns, num_lines in ((1, 1), (20, 4), (1024, 6), (32, 210)):
        turns = [Turn(n, f"{n}. {line * num_lines}", line * num_lines) for n in range(num_turns)]
        size = sum(len(turn.user) + len(turn.assistant) for turn in turns)
        await measure(f"{num_turns:,} turns, {size:,} bytes", lambda turns=turns: begun(models, turns))  # type: ignore[misc]  # its default is the loop's value
    print("| CountTokens at once | CPU, s | all done, s | a short prompt, median / longest, ms | a short count |")
    print("|---|---|---|---|---|")
    for num_counts in (1, 8):
        await count_beside(models, text, num_counts)
    print(f"took {time.monotonic() - started_s:.0f} s")


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    asyncio.run(main())
