"""Messages of participants, read as far as a manager has to, and instructions in the pieces that are written.

Decides what can't be a hello, a chunk or an answer. When each may come is session.py's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from google.protobuf.message import DecodeError

from manager.access.identity import Identity, claimed
from manager.core.members import ANONYMOUS, recognisable
from manager.payloads.blobs import Blob, Payload, view_of
from manager.payloads.spool import NoRoomError
from protos import stream_pb2
from protos.chunks import WHOLE_SIZE, Assembler, Pieces, read_chunk
from protos.envelope import Kind, MalformedMessageError, kind_of
from protos.frames import OWN_FRAME
from protos.messages import failure, refusal
from protos.parsing import check_result

MAX_HELLO: Final = 16 * 1024
"""Bytes of a first message. The coordinator holds it for as long as the participant is there."""

LEAST_CHUNK: Final = 16 * 1024
"""Bytes of a message in a chunk that is neither its first nor its last. Each chunk costs the same, so a
message in chunks of a byte would cost as much as a million of messages."""


def add_chunk(data: bytes, assembler: Assembler[Payload]) -> tuple[Payload, Kind] | None:
    """Adds a chunk; returns the whole message and its kind if it was the last.

    Raises MalformedMessageError. A message for which there is no room becomes a failure.
    """
    first = not assembler.partial
    total, part = read_chunk(data)
    try:
        whole = assembler.add(total, part)
    except NoRoomError as error:
        return failure(stream_pb2.Failure.RESOURCE_EXHAUSTED, str(error)).SerializeToString(), Kind.FAILURE
    if whole is None:
        if len(part) < LEAST_CHUNK and not first:
            raise MalformedMessageError(
                f"a chunk of {len(part)} bytes; all but first and last must have at least {LEAST_CHUNK}"
            )
        return None
    kind = kind_of(whole.head(), len(whole)) if isinstance(whole, Blob) else kind_of(bytes(whole))
    if kind not in (Kind.RESULT, Kind.FAILURE):
        raise MalformedMessageError("only a result or a failure may come in chunks")
    return whole, kind


def read_hello(data: bytes, identity: Identity | None = None) -> stream_pb2.Hello:
    """What the first message says; the id is that of the credentials, if there are any.

    Raises MalformedMessageError, or ImpostorError if it names another.
    """
    if len(data) > MAX_HELLO:
        raise MalformedMessageError(f"a first message of {len(data)} bytes; it may have {MAX_HELLO} at most")
    hello = _parse(data).hello
    if not recognisable(hello.participant_id):
        raise MalformedMessageError(f"participant ids that begin with {ANONYMOUS!r} are made up by managers")
    if identity is not None:
        hello.participant_id = claimed(identity, hello.participant_id)
    return hello


def _parse(data: bytes) -> stream_pb2.ParticipantMessage:
    try:
        return stream_pb2.ParticipantMessage.FromString(data)
    except DecodeError:
        raise MalformedMessageError(f"a message of {len(data)} bytes that is no ParticipantMessage") from None


def pieces(payload: Payload) -> Iterable[bytes]:
    """What to write to a stream for this instruction. Any number of streams may go through it."""
    if payload.__class__ is bytes and len(payload) <= WHOLE_SIZE:
        return (payload,)
    return Pieces(view_of(payload), stream_pb2.ServerMessage)


def checked(answer: Payload, kind: Kind) -> Payload:
    """The answer, or a failure in its place if it can't be read: what reaches a caller always can."""
    size = len(answer)
    try:
        if kind is Kind.RESULT:
            check_result(view_of(answer))
        elif kind is Kind.FAILURE:
            answer = bytes(view_of(answer)) if len(answer) < OWN_FRAME else b"\xff"  # larger than any text
            _parse(answer)
    except MalformedMessageError as error:
        return refusal(f"its answer of {size} bytes is not a valid ParticipantMessage: {error}")
    return answer
