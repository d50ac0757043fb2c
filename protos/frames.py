"""A link message as ZeroMQ frames (PROTOCOL.md B.2): a header, then payloads.

Frame 0 is the serialised Upward or Downward. Payloads shorter than OWN_FRAME bytes lie one after the other
in frame 1; each longer one has a frame of its own, so that nobody copies it. The sizes, listed in the
header, tell which is which. Packing many small payloads into one frame is what keeps the coordinator cheap:
ZeroMQ costs per frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from itertools import accumulate, pairwise
from typing import Final

from protos import link_pb2

OWN_FRAME: Final = 64 * 1024
"""Payloads of at least this many bytes travel in frames of their own."""

Buffer = bytes | memoryview


class MalformedFramesError(ValueError):
    """The frames don't fit the sizes in their header."""


def pack(payloads: Iterable[Buffer]) -> list[Buffer]:
    """The frames that follow the header."""
    small: list[Buffer] = []
    large: list[Buffer] = []
    for payload in payloads:
        (small if len(payload) < OWN_FRAME else large).append(payload)
    if not small and not large:
        return []
    return [b"".join(small), *large]


def unpack(frames: Sequence[Buffer], sizes: Sequence[int]) -> list[Buffer]:
    """The payloads, in the order of ``sizes``, from the frames that followed the header.

    Small payloads are copied out as bytes; large ones are the frames themselves. Raises MalformedFramesError
    when they don't match.
    """
    if not sizes:
        if frames:
            raise MalformedFramesError(f"{len(frames)} payload frames, though the header lists no payload")
        return []
    if not frames:
        raise MalformedFramesError(f"no payload frames, though the header lists {len(sizes)} payloads")
    packed = bytes(frames[0])
    if len(frames) == 1 and max(sizes) < OWN_FRAME:
        ends = list(accumulate(sizes, initial=0))
        if ends[-1] != len(packed):
            raise MalformedFramesError("the packed frame holds more or less than the header lists")
        return [packed[start:end] for start, end in pairwise(ends)]
    payloads: list[Buffer] = []
    offset, own = 0, 1
    for size in sizes:
        if size < OWN_FRAME:
            payloads.append(packed[offset : offset + size])
            offset += size
        elif own < len(frames) and len(frames[own]) == size:
            payloads.append(frames[own])
            own += 1
        else:
            raise MalformedFramesError(f"no frame for a payload of {size} bytes")
    if offset != len(packed) or own != len(frames):
        raise MalformedFramesError("the payload frames hold more or less than the header lists")
    return payloads


def check_orders(orders: link_pb2.Orders) -> None:
    """Raises MalformedFramesError if parallel lists differ in length or name payloads that don't exist."""
    _check_parallel(orders.instruct_sessions, orders.instruct_tags, orders.instruct_payloads)
    _check_parallel(orders.cancel_sessions, orders.cancel_tags)
    if orders.instruct_payloads and max(orders.instruct_payloads) >= len(orders.payload_sizes):
        raise MalformedFramesError("an instruction names a payload that isn't there")


def check_report(report: link_pb2.Report) -> None:
    """Raises MalformedFramesError if parallel lists differ in length."""
    _check_parallel(report.answer_sessions, report.answer_tags, report.answer_sizes)
    _check_parallel(report.end_sessions, report.end_reasons)


def _check_parallel(*lists: Sized) -> None:
    if len({len(items) for items in lists}) > 1:
        raise MalformedFramesError("parallel lists of different lengths")
