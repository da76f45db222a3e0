"""Arguments to messages, statuses to errors: nothing of the API is left out."""

import inspect
from typing import Any

import grpc
import pytest

import llamaherd.client
from contract import errors as served
from llamaherd.client import AsyncClient, Client, Knobs, assistant, connection, system, user
from llamaherd.client import errors as client_errors
from llamaherd.client.spec import build_spec
from llamaherd.v1 import common_pb2
from service import server, status
from service.settings import GatewaySettings


def test_every_field_of_a_spec_is_a_knob() -> None:
    """And no other name."""
    holders = (common_pb2.Sampling, common_pb2.Stopping, common_pb2.OutputOptions)
    fields = {field.name for holder in holders for field in holder.DESCRIPTOR.fields}

    assert set(Knobs.__annotations__) == fields | {"model", "priority", "resume_window_ms", "allow_format_tags"}


def test_inputs_become_what_they_are() -> None:
    """Text, conversation, ids, or all of it."""
    chat = [system("Be brief."), user("Hi"), assistant("Hello."), user("Count")]

    assert build_spec("text", {}) == common_pb2.GenerationSpec(prompt="text")
    assert build_spec(chat, {}) == common_pb2.GenerationSpec(chat=common_pb2.ChatInput(messages=chat))
    assert build_spec([1, 2], {}) == common_pb2.GenerationSpec(token_ids=common_pb2.TokenIds(ids=[1, 2]))
    spec = common_pb2.GenerationSpec(prompt="x", stopping=common_pb2.Stopping(stop_strings=["a"], max_new_tokens=3))
    changed = build_spec(spec, {"stop_strings": ["b"]})
    assert list(changed.stopping.stop_strings) == ["b"]
    assert changed.stopping.max_new_tokens == 3
    assert list(spec.stopping.stop_strings) == ["a"], "the caller's is not touched"


def test_knobs_go_where_they_belong() -> None:
    """Scalars, lists and maps; zero is a value."""
    spec = build_spec(
        "x", {"model": "m", "temperature": 0, "logit_bias": {5: -1.0}, "stop_strings": ["."], "logprobs": True}
    )
    assert spec == common_pb2.GenerationSpec(
        model="m",
        prompt="x",
        sampling=common_pb2.Sampling(temperature=0, logit_bias={5: -1.0}),
        stopping=common_pb2.Stopping(stop_strings=["."]),
        output=common_pb2.OutputOptions(logprobs=True),
    )
    with pytest.raises(TypeError, match="heat"):
        build_spec("x", {"heat": 1})  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize(
    ("knobs", "kind"),
    [
        ({"top_k": -1}, ValueError),
        ({"seed": 2**64}, ValueError),
        ({"max_new_tokens": 2**32}, ValueError),
        ({"temperature": "hot"}, TypeError),
        ({"stop_strings": [1]}, TypeError),
        ({"stop_strings": ["\udce9"]}, ValueError),
    ],
)
def test_what_no_request_can_hold_is_named(knobs: dict[str, Any], kind: type[Exception]) -> None:
    """Python's own errors, with the argument's name: nobody was asked."""
    with pytest.raises(kind, match=rf"^{next(iter(knobs))}: "):
        build_spec("x", knobs)  # type: ignore[arg-type]  # that is the point


def test_format_tags_are_a_conversation_s() -> None:
    """Allowing them makes no conversation of another prompt; not to allow them says nothing there."""
    chat = build_spec([user("see [INST]")], {"allow_format_tags": True})
    assert chat.chat.allow_format_tags
    for prompt in ("text", [1, 2], common_pb2.GenerationSpec(prompt="text")):
        with pytest.raises(ValueError, match=r"^allow_format_tags: only a conversation"):
            build_spec(prompt, {"allow_format_tags": True})
        assert build_spec(prompt, {"allow_format_tags": False}) == build_spec(prompt, {})


@pytest.mark.parametrize("prompt", [[1, "2"], ["1", 2], [user("Hi"), "and more"], [user("Hi"), 3]])
def test_no_part_of_a_prompt_is_passed_over(prompt: Any) -> None:
    """A list is of ids or of messages; what is neither is an error, not a shorter prompt."""
    with pytest.raises(TypeError):
        build_spec(prompt, {})


def test_every_reason_of_the_service_has_its_error() -> None:
    """Named alike, so that one table explains both; what is lost and DeadlinePassed have the client's point of view."""
    reasons = {row.reason: kind for kind, row in status.TABLE.items()}
    renamed = {served.LogBehind: "DataLoss", served.Unreadable: "DataLoss", served.DeadlinePassed: "DeadlineExceeded"}

    assert reasons.keys() | {"INTERNAL"} <= client_errors.BY_REASON.keys()
    for reason, kind in reasons.items():
        assert client_errors.BY_REASON[reason].__name__ == renamed.get(kind, kind.__name__)


def test_every_error_is_public_and_in_the_tree() -> None:
    """Of the module's first lines."""
    kinds = {
        name
        for name, kind in inspect.getmembers(client_errors, inspect.isclass)
        if issubclass(kind, client_errors.HerdError)
    }
    assert kinds <= set(llamaherd.client.__all__)
    assert client_errors.__doc__ is not None
    assert all(name in client_errors.__doc__ for name in kinds)


def test_every_public_name_is_there() -> None:
    """`__all__` promises nothing that is not."""
    assert all(hasattr(llamaherd.client, name) for name in llamaherd.client.__all__)


def test_both_clients_have_the_same_methods_documented() -> None:
    """On the class a method is the function that builds its call: signature and docstring are readable there."""
    for name in ("generate", "attach", "complete", "submit", "get", "cancel", "models", "tokenize", "count_tokens"):
        assert inspect.getdoc(getattr(Client, name)) == inspect.getdoc(getattr(AsyncClient, name)) != None  # noqa: E711
    assert "from_position" in inspect.signature(Client.attach).parameters
    parameters = [list(inspect.signature(kind.__init__).parameters) for kind in (Client, AsyncClient)]
    assert parameters[0] == parameters[1]


def test_the_gateway_permits_the_clients_pings() -> None:
    """Who pings more often than that is thrown out."""
    least_ms = dict(server.options_of(GatewaySettings()))["grpc.http2.min_ping_interval_without_data_ms"]
    assert least_ms + 1000 <= connection.KEEPALIVE_TIME_MS


class BareCall:
    """A status as a proxy makes it."""

    def __init__(self, code: grpc.StatusCode, trailers: tuple[tuple[str, str | bytes], ...] = ()) -> None:
        self._code, self._trailers = code, trailers

    def code(self) -> grpc.StatusCode:
        """As given."""
        return self._code

    def details(self) -> str:
        """Some text."""
        return "text"

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """As given."""
        return self._trailers


@pytest.mark.parametrize("code", ["UNAVAILABLE", "CANCELLED", "INTERNAL", "UNKNOWN"])
def test_what_the_service_did_not_say_is_a_broken_connection(code: str) -> None:
    """A status without ErrorInfo comes from the transport or from a proxy."""
    assert type(client_errors.typed(BareCall(grpc.StatusCode[code]))) is client_errors.ConnectionBroken


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("UNAUTHENTICATED", client_errors.NotAllowed),
        ("PERMISSION_DENIED", client_errors.NotAllowed),
        ("RESOURCE_EXHAUSTED", client_errors.QuotaExceeded),
        ("FAILED_PRECONDITION", client_errors.HerdError),
        ("DATA_LOSS", client_errors.DataLoss),
    ],
)
def test_a_bare_code_has_an_error_too(code: str, kind: type[client_errors.HerdError]) -> None:
    """Proxies and later services; trailers that are no details are passed over."""
    trailers = (("grpc-status-details-bin", b"\xff\xff"), ("grpc-retry-pushback-ms", "soon"))
    error = client_errors.typed(BareCall(grpc.StatusCode[code], trailers))

    assert type(error) is kind
    assert error.forbids_retry
    assert str(error) == f"{code}: text"
