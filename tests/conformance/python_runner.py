"""The Python client's runner of one scenario: {gateways, steps} as JSON in, an observation of each step as JSON out."""

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from llamaherd.client import Chat, Client, HerdError, Stream
from llamaherd.v1 import common_pb2

Step = Mapping[str, Any]
Observation = dict[str, Any]


class Runner:
    """One scenario's clients, its conversation, and what an `attach` goes on with."""

    def __init__(self, gateways: Mapping[str, str], stack: ExitStack) -> None:
        self._gateways = gateways
        self._stack = stack
        self._chat: Chat | None = None
        self._generation_id = ""
        self._chains: list[int] = []

    def run(self, step: Step) -> Observation:
        """Do it; what was seen."""
        seen: Observation = {
            "texts": [],
            "ids": [],
            "positions": [],
            "num_silent": 0,
            "reasons": [],
            "stop_strings": [],
        }
        addresses = [self._gateways[name] for name in step.get("at", ("one", "two"))]
        client = self._stack.enter_context(Client(addresses, patience_s=step.get("patience_s", 60.0)))
        try:
            self._act(client, step, seen)
        except HerdError as error:
            seen["error"] = {
                "kind": type(error).__name__,
                "reason": error.reason,
                "violations": [violation.field for violation in error.violations],
                "has_retry_after": error.retry_after_s is not None,
            }
        return seen

    def _act(self, client: Client, step: Step, seen: Observation) -> None:
        prompt, knobs = step.get("prompt", ""), step.get("knobs", {})
        timeout_s = step.get("timeout_s", 100.0)
        match step["do"]:
            case "generate":
                stream = client.generate(prompt, timeout_s=timeout_s, **knobs)
                self._read(client, stream, step, seen, lambda: client.cancel(stream.generation_id))
            case "attach":
                at = step.get("from_position", 0)
                stream = client.attach(self._generation_id, at, self._chains[at - 1] if at else None)
                self._read(client, stream, step, seen, lambda: client.cancel(stream.generation_id))
            case "complete":
                answer = client.complete(prompt, timeout_s=timeout_s, **knobs)
                for number, choice in enumerate(answer.choices):
                    _add(seen, number, choice.text, choice.tokens)
                    _end(seen, choice.finished)
                seen["prompt_tokens"] = answer.usage.prompt_tokens
            case "open":
                self._chat = client.chat(system_prompt=step.get("system_prompt", ""), **knobs)
                self._chat.open()
            case "resume":
                self._chat = client.chat(handle=self._opened.handle)
                self._chat.open()
                seen["num_turns"] = self._chat.num_turns
            case "end":
                self._opened.end()
            case "say":
                turn = self._opened.send(prompt, timeout_s=timeout_s)
                self._read(client, turn, step, seen, self._opened.interrupt)

    def _read(self, client: Client, stream: Stream, step: Step, seen: Observation, stop: Callable[[], object]) -> None:
        is_stopped = False
        self._chains = []
        for delta in stream:
            _add(seen, delta.choice, delta.text, delta.tokens)
            if delta.finished is not None:
                _end(seen, delta.finished)
            self._chains += [token.chain for token in delta.tokens]
            self._generation_id = stream.generation_id
            if len(seen["positions"]) >= step.get("leave_after", float("inf")):
                break
            if len(seen["positions"]) >= step.get("close_after", float("inf")):
                client.close()
            if len(seen["positions"]) >= step.get("cancel_after", float("inf")) and not is_stopped:
                is_stopped = True
                stop()
        stream.close()
        if stream.usage is not None:
            seen["prompt_tokens"] = stream.usage.prompt_tokens
        if stream.turn is not None:
            seen["turn"] = stream.turn.turn

    @property
    def _opened(self) -> Chat:
        assert self._chat is not None, "the scenario opens no conversation"
        return self._chat


def _add(seen: Observation, choice: int, text: str, tokens: Any) -> None:
    for name, empty in (("texts", ""), ("ids", [])):
        seen[name] += [type(empty)() for _ in range(choice + 1 - len(seen[name]))]
    seen["texts"][choice] += text
    seen["ids"][choice] += [token.id for token in tokens]
    seen["positions"] += [token.position for token in tokens]
    seen["num_silent"] += sum(not token.text for token in tokens)


def _end(seen: Observation, finished: common_pb2.ChoiceFinished) -> None:
    for name in ("reasons", "stop_strings"):
        seen[name] += ["" for _ in range(finished.choice + 1 - len(seen[name]))]
    seen["reasons"][finished.choice] = common_pb2.FinishReason.Name(finished.reason).removeprefix("FINISH_REASON_")
    seen["stop_strings"][finished.choice] = finished.stop_string


def main() -> None:
    """Run the scenarios on standard input, a line each."""
    for line in sys.stdin:
        said = json.loads(line)
        with ExitStack() as stack:
            runner = Runner(said["gateways"], stack)
            seen = [runner.run(step) for step in said["steps"]]
        print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
