"""Whether bytes are a stream message, found out without copying their bulk.

Parsing copies every byte, and the arrays' memory once more. So a large message is walked (walk.py): all but
the bulk (``Tensor.data`` and ``payload``) is put together into a small message, which protobuf parses and
thereby checks. What is bulk can't be malformed: any bytes will do, and the walk has checked their length.
Whatever the walk doesn't expect, it leaves to protobuf: the worst it can be is slow. But a participant must
not be able to fill a manager's memory or to stop its event loop, so a result of millions of tiny fields is
refused.

What tensors look like as arrays is sliced.py's, which needs NumPy; this doesn't.
"""

from __future__ import annotations

from typing import Final, TypeVar, cast

from google.protobuf.message import DecodeError

from protos import stream_pb2
from protos.chunks import MAX_FRAME_SIZE
from protos.envelope import MalformedMessageError
from protos.walk import RESULT_FORM, Sliced, without_bulk

_SMALL: Final = 16 * 1024
"""Up to this many bytes, parsing all of it takes less time than the walk."""

_Message = TypeVar("_Message", stream_pb2.ParticipantMessage, stream_pb2.ServerMessage)


def check_result(data: bytes | memoryview) -> None:
    """Raises MalformedMessageError unless protobuf can parse ``data`` as a ParticipantMessage.

    A memoryview must be one of contiguous bytes.
    """
    without_result_bulk(data)


def without_result_bulk(data: bytes | memoryview) -> tuple[stream_pb2.ParticipantMessage, Sliced | None]:
    """The message, and where the bulk is that has been left out of it; None if nothing has.

    Raises MalformedMessageError as ``check_result`` does.
    """
    sliced = _slice_result(data) if len(data) > _SMALL else None
    return parse(data if sliced is None else sliced.rest, stream_pb2.ParticipantMessage), sliced


def parse(data: bytes | memoryview, kind: type[_Message]) -> _Message:
    """The message. Raises MalformedMessageError if it is none."""
    try:
        return kind.FromString(cast("bytes", data))
    except DecodeError as error:
        raise MalformedMessageError(f"not a {kind.__name__} ({error})") from None


def _slice_result(data: bytes | memoryview) -> Sliced | None:
    sliced = without_bulk(data, RESULT_FORM)
    if sliced is None and len(data) > MAX_FRAME_SIZE:
        raise MalformedMessageError("a large message in a form that isn't canonical, or of too many fields")
    return sliced
