"""bitsandbytes, imported without torch's compiler, which takes over two seconds of a worker's start and restart.

bitsandbytes hands functions to `torch.compile` (dequantization and optimizers of devices that it has no library for;
nothing here calls them), and torch hides every operator from the compiler when it is first called (`_disable_dynamo`).
Both import the compiler, and both only wrap: left as they are, the functions compute the same.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

WRAPPERS = ("compile", "_disable_dynamo")


def import_bitsandbytes(name: str = "bitsandbytes") -> ModuleType:
    """The package, or one of its modules. The first import takes a third of a second: call this only to use it."""
    with _nothing_wrapped():
        return importlib.import_module(name)


@contextmanager
def _nothing_wrapped() -> Iterator[None]:
    wrappers = {name: getattr(torch, name) for name in WRAPPERS}
    for name in wrappers:
        setattr(torch, name, _as_it_is)
    try:
        yield
    finally:
        for name, wrapper in wrappers.items():
            setattr(torch, name, wrapper)


def _as_it_is(function: Callable[..., Any] | None = None, **_: object) -> Callable[..., Any]:
    """Called as the wrappers are: with a function, or with arguments to be a decorator."""
    return _as_it_is if function is None else function
