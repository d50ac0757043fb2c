"""What the dispatcher needs of whoever brings instructions to the participants' streams.

In a single process that is server.py; in a coordinator, coordinator/workers/transport.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from manager.core.call import Call, Send
from manager.core.members import Member
from manager.payloads.blobs import Payload


class Transport(Protocol):
    """Where instructions go. None of these may block or raise, and none calls back at once."""

    def keep(self, instruction: bytes) -> Payload:
        """The instruction as it is best kept for sending it to many."""
        ...

    def instruct(self, sends: Sequence[Send]) -> None:
        """Sends instructions, each with its tag, to members that are idle."""
        ...

    def cancel(self, member: Member, tag: int) -> None: ...

    def close_batch(self, worker: int, call: Call) -> None:
        """Asks a worker for its last partial of a reducing call, however many have not answered."""
        ...

    def end(self, member: Member) -> None:
        """Ends the member's stream: a newer session of the same participant has taken its place.

        ``ended`` follows, once nothing can come of it any more.
        """
        ...
