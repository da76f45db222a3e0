"""The methods that both clients have, written once: `Client` answers them, `AsyncClient` answers them awaited."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from llamaherd.client import calls, chat
from llamaherd.client.calls import StreamCall, UnaryCall
from llamaherd.client.chat import Conversation

if TYPE_CHECKING:
    from llamaherd.client.aio import AsyncChat, AsyncClient, AsyncStream
    from llamaherd.client.sync import Chat, Client, Stream

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class Unary(Generic[Arguments, Answer]):
    """A method with one answer. On the class itself it is the function that builds the call, with its docstring."""

    def __init__(self, build: Callable[Arguments, UnaryCall[Answer]]) -> None:
        self._build = build

    @overload
    def __get__(self, client: None, owner: type) -> Callable[Arguments, UnaryCall[Answer]]: ...

    @overload
    def __get__(self, client: Client, owner: type) -> Callable[Arguments, Answer]: ...

    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[Arguments, Coroutine[Any, Any, Answer]]: ...

    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Callable[Arguments, Any]:
        if client is None:
            return self._build
        return _bound(self._build, client.answer)


class Streaming(Generic[Arguments]):
    """A method that reads a generation."""

    def __init__(self, build: Callable[Arguments, StreamCall]) -> None:
        self._build = build

    @overload
    def __get__(self, client: None, owner: type) -> Callable[Arguments, StreamCall]: ...

    @overload
    def __get__(self, client: Client, owner: type) -> Callable[Arguments, Stream]: ...

    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[Arguments, AsyncStream]: ...

    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Callable[Arguments, Any]:
        if client is None:
            return self._build
        return _bound(self._build, client.stream)


class Conversing(Generic[Arguments]):
    """A method that begins a conversation."""

    def __init__(self, build: Callable[Arguments, Conversation]) -> None:
        self._build = build

    @overload
    def __get__(self, client: None, owner: type) -> Callable[Arguments, Conversation]: ...

    @overload
    def __get__(self, client: Client, owner: type) -> Callable[Arguments, Chat]: ...

    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[Arguments, AsyncChat]: ...

    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Callable[Arguments, Any]:
        if client is None:
            return self._build
        return _bound(self._build, client.conversation)


class Methods:
    """What a client can be asked."""

    chat = Conversing(chat.chat)

    generate = Streaming(calls.generate)
    attach = Streaming(calls.attach)
    complete = Unary(calls.complete)
    submit = Unary(calls.submit)
    get = Unary(calls.get)
    cancel = Unary(calls.cancel)
    models = Unary(calls.models)
    model = Unary(calls.model)
    tokenize = Unary(calls.tokenize)
    detokenize = Unary(calls.detokenize)
    count_tokens = Unary(calls.count_tokens)


def _bound(build: Callable[..., Any], run: Callable[[Any], Any]) -> Callable[..., Any]:
    """The method: build the call, then run it."""

    @functools.wraps(build)
    def method(*args: Any, **kwargs: Any) -> Any:
        return run(build(*args, **kwargs))

    return method
