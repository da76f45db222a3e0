"""Every client runs every scenario of scenarios.yaml against real gateways; what is expected is the same for all."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clients.python.scripted_gateway import GENERATION_ID, Cut, ScriptedGateway
from tests.conformance.browser import Browser
from tests.conformance.conftest import CLIENTS, full_queue
from tests.conformance.cut_cable import Cuts, cut_cable
from tests.conformance.runners import Observation, Runner
from tests.herd_process import ROOT

SCENARIOS: Mapping[str, Sequence[Mapping[str, Any]]] = yaml.safe_load(
    Path(__file__).with_name("scenarios.yaml").read_text()
)

# The first test of a session builds a client.
pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("name", SCENARIOS)
async def test_scenario(name: str, runner: Runner, pair: dict[str, str]) -> None:
    """What each step showed is what the file expects of it."""
    steps = [{"at": runner.at, **step} for step in SCENARIOS[name]]
    cuts = Cuts()
    async with AsyncExitStack() as stack:
        gateways = dict(runner.gateways)
        for gateway in ("one", "two"):
            gateways[f"cut_{gateway}"] = await stack.enter_async_context(cut_cable(gateways[gateway], cuts))
        if any("busy" in step["at"] for step in steps):
            await stack.enter_async_context(full_queue(pair["one"], pair["busy"]))
        seen = await runner.run({"gateways": gateways, "steps": steps})
    assert len(seen) == len(steps)
    for number, step in enumerate(steps):
        expected = dict(step.get("expect", {}))
        assert cuts.num_cuts >= expected.pop("num_cuts_at_least", 0)
        check(seen, number, expected, step)


async def test_a_deadline_ends_what_it_started(runner: Runner, recorder: ScriptedGateway) -> None:
    """The service is told, before `accepted` too, but where the caller may come back: here by a window of its own."""
    recorder.cuts += [Cut(4, stall=True), *[Cut(0, stall=True)] * 20]  # any call stands still, however late it comes
    step: dict[str, Any] = {"at": ["recorder"], "prompt": "x", "timeout_s": 0.2}
    steps = [
        step | {"do": "generate"},
        step | {"do": "generate"},
        step | {"do": "complete"},
        step | {"do": "generate", "knobs": {"resume_window_ms": 90_000}},
    ]
    seen = await runner.run({"gateways": {"recorder": recorder.address} | dict(runner.gateways), "steps": steps})

    assert [each["error"]["kind"] for each in seen] == ["DeadlineExceeded"] * 4
    assert recorder.cancelled == [GENERATION_ID] * 3


async def test_a_stream_that_gives_up_before_its_deadline_ends_what_it_started(
    runner: Runner, recorder: ScriptedGateway
) -> None:
    """It is to come back after 50 s, and has 40: nobody will. A window of the caller's own says that it may."""
    recorder.cuts += [Cut(4, trailers=(("grpc-retry-pushback-ms", "50000"),))] * 2
    step: dict[str, Any] = {"do": "generate", "at": ["recorder"], "prompt": "x", "timeout_s": 40}
    steps = [step | {"knobs": {"resume_window_ms": 90_000}}, step]
    seen = await runner.run({"gateways": {"recorder": recorder.address} | dict(runner.gateways), "steps": steps})

    assert [each["error"]["kind"] for each in seen] == ["ConnectionBroken"] * 2
    assert recorder.cancelled == [GENERATION_ID]


async def test_the_end_of_a_client_ends_what_it_reads(runner: Runner, recorder: ScriptedGateway) -> None:
    """Told before the client's end is done, and its reader is told too: it is not a short text."""
    recorder.cuts += [Cut(4, stall=True)]
    step: dict[str, Any] = {"do": "generate", "at": ["recorder"], "prompt": "x", "close_after": 1}
    (seen,) = await runner.run({"gateways": {"recorder": recorder.address} | dict(runner.gateways), "steps": [step]})

    assert (seen["texts"], seen["error"]["kind"]) == (["a"], "Cancelled")
    assert recorder.cancelled == [GENERATION_ID]


async def test_the_conversation_of_the_readme_in_a_browser(page: Browser, proxies: dict[str, str]) -> None:
    """Of the TypeScript client's; it talks to a real herd."""
    text = await page.run({"visit": f"/conversation?herd=http://{proxies['both']}", "until": "turns"})

    asked, first, asked_again, second, turns = text.splitlines()
    assert asked == asked_again == "> Count to ten"
    assert "10" in first
    assert "10" in second
    assert turns == "2 turns"


async def test_a_page_sends_its_key(page: Browser, proxies: dict[str, str], recorder: ScriptedGateway) -> None:
    """With every call, through Envoy."""
    at = ("recorder",)
    steps = [{"do": "generate", "at": at, "prompt": "x"}, {"do": "attach", "at": at, "from_position": 3}]
    first, rest = await page.run({"gateways": proxies, "api_key": "secret", "steps": steps})

    assert (first["texts"], rest["texts"]) == (["abcdef"], ["def"])
    assert [metadata["authorization"] for metadata in recorder.metadata] == ["Bearer secret"] * 2


def test_every_expectation_is_one_that_is_checked() -> None:
    """A misspelt one would hold for ever."""
    known = {*CHECKS, "error", "num_cuts_at_least"}
    for steps in SCENARIOS.values():
        for step in steps:
            assert set(step.get("expect", {})) <= known


def test_every_client_is_held_to_them() -> None:
    """README.md's table tells which of the folders are clients."""
    rows = re.findall(r"^\| `clients/(\w+)/` \| (\w+) client", (ROOT / "README.md").read_text(), re.MULTILINE)

    assert {folder for folder, _ in rows} == {path.parent.name for path in ROOT.glob("clients/*/README.md")}
    assert {folder for folder, article in rows if article == "a"} == set(CLIENTS)


def check(seen: Sequence[Observation], number: int, expected: dict[str, Any], step: Mapping[str, Any]) -> None:
    """One step against what is expected of it; positions are checked of every stream."""
    here = seen[number]
    check_error(here.get("error"), expected.pop("error", None))
    if step["do"] != "complete":
        first = step.get("from_position", 0)
        assert here["positions"] == list(range(first, first + len(here["positions"]))), "lost, twice or out of order"
    for name, value in expected.items():
        assert CHECKS[name](seen, here, value), f"step {number}: {name} {value!r} of {here}"


def check_error(error: dict[str, Any] | None, expected: dict[str, Any] | None) -> None:
    """The facts that are expected, and no error where none is."""
    if error is None or expected is None:
        assert error == expected
        return
    kinds = expected.get("kinds", [error["kind"]])
    facts = {name: value for name, value in expected.items() if name != "kinds"}
    assert error["kind"] in kinds
    assert {name: error[name] for name in facts} == facts


CHECKS: Mapping[str, Callable[[Sequence[Observation], Observation, Any], bool]] = {
    "same_as": lambda seen, here, step: all(here[part] == seen[step][part] for part in ("texts", "ids", "reasons")),
    "continues": lambda seen, here, at: (
        seen[0]["ids"][0][at:] == here["ids"][0] and seen[0]["texts"][0].endswith(here["texts"][0])
    ),
    "text_has": lambda _, here, text: text in here["texts"][0],
    "text_lacks": lambda _, here, text: text not in here["texts"][0],
    "num_choices": lambda _, here, num: len(here["texts"]) == num,
    "num_tokens": lambda _, here, num: sum(map(len, here["ids"])) == num,
    "num_tokens_below": lambda _, here, num: sum(map(len, here["ids"])) < num,
    "num_silent_at_least": lambda _, here, num: here["num_silent"] >= num,
    "reasons": lambda _, here, reasons: here["reasons"] == reasons,
    "stop_strings": lambda _, here, strings: here["stop_strings"] == strings,
    "turn": lambda _, here, turn: here.get("turn") == turn,
    "num_turns": lambda _, here, num: here.get("num_turns") == num,
    "prompt_tokens_above": lambda seen, here, step: here["prompt_tokens"] > seen[step]["prompt_tokens"],
}
