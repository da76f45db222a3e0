"""Ending an asyncio server whose clients may connect at that very moment."""

import asyncio


async def stop_listening(server: asyncio.Server) -> None:
    """Close it. Who has connected by now has a handler, whose end is the caller's to bring about and to wait for.

    A connection that CPython 3.11 has accepted, and not yet handed over when its server closes, is forgotten with its
    socket open: a ResourceWarning in whatever test runs when that is noticed. So accepting ends first.
    """
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        loop.remove_reader(listener)
    await asyncio.sleep(0)  # what was accepted takes its first step, in which it is handed over
    server.close()
