"""Decides what a participant's first message says."""

from __future__ import annotations

from collections.abc import Mapping

from protos import stream_pb2
from protos.version import VERSION


def check_id(participant_id: str) -> str:
    """Returns the id. Raises TypeError unless it is text."""
    if not isinstance(participant_id, str):
        raise TypeError(f"an id is text, not {participant_id!r}")
    return participant_id


def check_attributes(attributes: Mapping[str, str] | None) -> dict[str, str]:
    """A copy of the attributes. Raises TypeError unless they are text by text, as the wire has them."""
    try:
        copy = dict(attributes or {})
    except (TypeError, ValueError):
        raise TypeError(f"attributes must map names to values, not {attributes!r}") from None
    for key, value in copy.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"attribute {key!r}={value!r}: both must be str")
    return copy


def hello(
    participant_id: str, attributes: Mapping[str, str], *, accepts_cancel: bool
) -> stream_pb2.ParticipantMessage:
    """The first message of a participant that says who it is."""
    return stream_pb2.ParticipantMessage(
        hello=stream_pb2.Hello(
            participant_id=participant_id,
            attributes=attributes,
            sdk_version=f"muster-python/{VERSION}",
            accepts_cancel=accepts_cancel,
        )
    )
