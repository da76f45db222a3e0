"""Where texts are worked on that nobody generates from: small ones beside each other, large ones one by one."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

LARGE_BYTES = 64 * 1024  # some 40 ms of encoding

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class LargeInputs:
    """One thread for all large inputs: they wait for each other, and neither a prompt nor a small input for them.

    Some of 4 MiB, at 2 s each, would otherwise take every thread of the loop's pool, in which prompts are encoded, and
    the memory of all of them at once. A caller that has left before its turn costs nothing.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "large-inputs")

    async def run(
        self, num_bytes: int, work: Callable[Arguments, Answer], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Answer:
        """What `work` gives, in a thread; `num_bytes` is the size of what it works on."""
        if num_bytes <= LARGE_BYTES:
            return await asyncio.to_thread(work, *args, **kwargs)
        return await asyncio.wrap_future(self._thread.submit(work, *args, **kwargs))
