"""What an error of the service says beside its code and its text."""

from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status


def details_of(error: grpc.aio.AioRpcError) -> tuple[Any, Any, Any]:
    """ErrorInfo, BadRequest (empty if there is none), and the retry delay or None."""
    status = rpc_status.from_call(error)
    assert status is not None, "no details"
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    found = [any_.Unpack(kind) for any_ in status.details for kind in (info, bad, retry) if any_.Is(kind.DESCRIPTOR)]
    assert found
    assert all(found)
    return info, bad, retry.retry_delay if retry.HasField("retry_delay") else None
