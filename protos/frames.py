"""A link message as ZeroMQ frames (PROTOCOL.md B.2): a header, then payloads.

Frame 0 is the serialised Upward or Downward; its ``Payloads`` list all sizes. Payloads shorter than OWN_FRAME
bytes lie one after the other in frame 1; each longer one has a frame of its own, so that nobody copies it, or
is in the sender's memory and only its descriptor travels (manager/payloads/blobs.py). Packing many small
payloads into one frame is what keeps the coordinator cheap: ZeroMQ costs per frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from protos import link_pb2

OWN_FRAME: Final = 64 * 1024
"""Payloads of at least this many bytes travel in frames of their own, or as descriptors."""

Buffer = bytes | memoryview


class Shared(NamedTuple):
    """A payload in the sender's memory."""

    descriptor: int
    size: int


class _Sharable(Protocol):
    """What ``pack`` takes as a payload in this process's memory: a manager.payloads.blobs.Blob."""

    @property
    def descriptor(self) -> int: ...

    def __len__(self) -> int: ...


class MalformedFramesError(ValueError):
    """The frames don't fit the sizes in their header."""


def pack(payloads: Sequence[Buffer | _Sharable]) -> tuple[link_pb2.Payloads | None, list[Buffer]]:
    """The header's entry, and the frames that follow it. None if there is no payload.

    What is in this process's memory must be of at least OWN_FRAME bytes.
    """
    if not payloads:
        return None, []
    sizes = list(map(len, payloads))
    if max(sizes) < OWN_FRAME:
        return link_pb2.Payloads(sizes=sizes), [b"".join(payloads)]  # type: ignore[arg-type] # none is shared
    small: list[Buffer] = []
    large: list[Buffer] = []
    shared: list[int] = []
    descriptors: list[int] = []
    for index, payload in enumerate(payloads):
        if not isinstance(payload, Buffer):
            shared.append(index)
            descriptors.append(payload.descriptor)
        elif sizes[index] < OWN_FRAME:
            small.append(payload)
        else:
            large.append(payload)
    header = link_pb2.Payloads(sizes=sizes, shared=shared, descriptors=descriptors)
    return header, [b"".join(small), *large]


def unpack(frames: Sequence[Buffer], header: link_pb2.Payloads) -> list[Buffer | Shared]:
    """The payloads in order, from the frames that followed the header.

    Small payloads are copied out as bytes; large ones are the frames themselves; shared ones are still to be
    opened. Raises MalformedFramesError when header and frames don't match.
    """
    sizes = header.sizes
    shared_count = len(header.shared)
    if shared_count != len(header.descriptors) or (shared_count and shared_count != len(set(header.shared))):
        raise MalformedFramesError("parallel lists of different lengths, or a payload that is named twice")
    if not sizes:
        if frames or shared_count:
            raise MalformedFramesError("payload frames or descriptors, though the header lists no payload")
        return []
    if not frames:
        raise MalformedFramesError(f"no payload frames, though the header lists {len(sizes)} payloads")
    packed = bytes(frames[0])
    if len(frames) == 1 and not shared_count and max(sizes) < OWN_FRAME:
        small: list[Buffer | Shared] = []
        start = 0
        for size in sizes:
            end = start + size
            small.append(packed[start:end])
            start = end
        if start != len(packed):
            raise MalformedFramesError("the packed frame holds more or less than the header lists")
        return small
    shared = dict(zip(header.shared, header.descriptors, strict=True))
    payloads: list[Buffer | Shared] = []
    offset, own = 0, 1
    for index, size in enumerate(sizes):
        if index in shared:
            payloads.append(Shared(shared.pop(index), size))
        elif size < OWN_FRAME:
            payloads.append(packed[offset : offset + size])
            offset += size
        elif own < len(frames) and len(frames[own]) == size:
            payloads.append(frames[own])
            own += 1
        else:
            raise MalformedFramesError(f"no frame for a payload of {size} bytes")
    if offset != len(packed) or own != len(frames) or shared:
        raise MalformedFramesError("the payload frames hold more or less than the header lists")
    return payloads


def check_orders(orders: link_pb2.Orders) -> None:
    """Raises MalformedFramesError if parallel lists differ in length or name payloads that don't exist."""
    count = len(orders.payloads.sizes)
    if not len(orders.instruct_sessions) == len(orders.instruct_tags) == len(orders.instruct_payloads):
        raise MalformedFramesError(_UNEQUAL)
    if len(orders.cancel_sessions) != len(orders.cancel_tags):
        raise MalformedFramesError(_UNEQUAL)
    if orders.instruct_payloads and max(orders.instruct_payloads) >= count:
        raise MalformedFramesError(_MISSING)
    for broadcast in orders.broadcasts:
        if broadcast.payload >= count:
            raise MalformedFramesError(_MISSING)


def check_report(report: link_pb2.Report) -> None:
    """Raises MalformedFramesError if parallel lists differ in length or name payloads that don't exist."""
    count = len(report.payloads.sizes)
    if len(report.answer_sessions) != len(report.answer_tags):
        raise MalformedFramesError(_UNEQUAL)
    if len(report.end_sessions) != len(report.end_reasons):
        raise MalformedFramesError(_UNEQUAL)
    if len(report.answer_sessions) > count:
        raise MalformedFramesError(_MISSING)
    for partial in report.partials:
        for group in partial.groups:
            if group.payload >= count:
                raise MalformedFramesError(_MISSING)


_UNEQUAL: Final = "parallel lists of different lengths"
_MISSING: Final = "a payload is named, or an answer has one, that isn't there"
