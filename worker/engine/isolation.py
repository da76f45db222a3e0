"""Run a batch so that an error costs only the item that causes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Failure:
    """An item that failed when it ran alone; `error` names the exception."""

    error: str


def run_isolated(run: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]) -> list[Result | Failure]:
    """`run(items)`; if that raises, run each item alone, once.

    `run` gives one result an item and may be repeated for the same item. Out of memory is an error like any
    other. A lost device (torch.AcceleratorError, after which no call on it succeeds) is raised: no item is to
    blame, the process has to end, and other workers continue what it held.
    """
    try:
        return list(run(items))
    except torch.AcceleratorError:
        raise
    except Exception as error:
        if len(items) == 1:
            return [Failure(f"{type(error).__name__}: {error}")]
    return [run_isolated(run, [item])[0] for item in items]
