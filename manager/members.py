"""What is known of one pooled participant: shared by the pool and the table of calls.

A member is one session of one participant. When the participant reconnects it becomes a new member with a
new key, so that nothing meant for the old session can reach the new one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manager.calls import Call


@dataclass(slots=True, eq=False)
class Member:
    """One session of one participant. Compared by identity."""

    key: int  # unique in the life of a pool, never used again
    participant_id: str
    attributes: Mapping[str, str]
    worker: int
    session: int  # the worker's own number for it
    peer: str = ""
    accepts_cancel: bool = False
    joined_at: float = 0.0  # monotonic seconds

    # The pool's:
    lease: int | None = None
    gone: bool = False

    # The callers' stand-in for it; kept here so that each session has one, for as long as it lives:
    proxy: Any = None

    # The table of calls':
    tag: int = 0  # of the instruction that it works on; 0: none
    call: Call | None = None  # whose instruction that is; None once nobody waits for the answer
    index: int = 0  # the member's position in that call
    queue: deque[tuple[Call, int]] = field(default_factory=deque)

    @property
    def busy(self) -> bool:
        """Whether it works on an instruction, one whose call was given up included."""
        return self.tag != 0


def printable(participant_id: str) -> str:
    """An id for a log line: participants choose theirs, and must not forge lines or paint the terminal."""
    if participant_id.isprintable() and len(participant_id) <= 80:
        return participant_id
    return repr(participant_id[:80])
