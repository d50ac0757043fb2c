"""What is shown of a coordinator at work: as log lines and as JSON. As tables and live: terminal.py.

Only looks; everything comes from control_pb2 messages, so that the live display, ``coordinator status`` and
``--json`` can't disagree.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol, Self

from google.protobuf.message import Message

from protos import control_pb2

log = logging.getLogger("muster.coordinator")

UPDATE_INTERVAL = 0.5
"""Seconds between two looks of the live display."""


class View(Protocol):
    """Shows a running coordinator, for as long as it is entered."""

    def update(self, status: control_pb2.Status) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


class LogView:
    """A log line whenever the number of participants has changed."""

    def __init__(self) -> None:
        self._last: int = 0

    def update(self, status: control_pb2.Status) -> None:
        if status.participants != self._last:
            log.info(
                "%s (%+d): %s",
                counted(status.participants, "participant"),
                status.participants - self._last,
                ", ".join(f"worker {worker.index}: {worker.participants}" for worker in status.workers),
            )
            self._last = status.participants

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


def counted(count: int, what: str) -> str:
    """Like ``1 call`` or ``1,200 calls``."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def time_to_finish(calls: int, seconds: float) -> str:
    """How long calls may go on when a coordinator stops."""
    have = "has" if calls == 1 else "have"
    return f"{counted(calls, 'running call')} {have} {round(seconds, 1):g} s to finish"


def as_dict(message: Message) -> dict[str, Any]:
    """A message for JSON: every field, under its own name, numbers as numbers."""
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            result[field.name] = dict(value)
        elif field.message_type is None:
            result[field.name] = value if isinstance(value, str | int | float) else list(value)
        elif isinstance(value, Message):
            result[field.name] = as_dict(value)
        else:
            result[field.name] = [as_dict(item) for item in value]
    return result
