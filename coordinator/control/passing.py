"""How a payload crosses the control stream: as bytes, or as a descriptor of the sender's memory.

Both ends use it. Which memory may be opened is said in the first messages of a stream; large answers then
cost the coordinator nothing, however large they are.
"""

from __future__ import annotations

from manager.payloads.blobs import Blob, Payload, open_shared, view_of
from protos import control_pb2
from protos.frames import Shared


class Outgoing:
    """Payloads on their way to the other end of one stream."""

    def __init__(self) -> None:
        self.shares_memory = False
        """Whether the other end can open this process's memory."""
        self._kept: dict[int, Blob] = {}

    def message(self, payload: Payload, *, keep: bool = True) -> control_pb2.Payload:
        """What to send. With ``keep`` a payload that is shared is kept until the other end ``opened`` it."""
        if isinstance(payload, Blob) and self.shares_memory and payload.descriptor >= 0:
            if keep:
                self._kept[payload.descriptor] = payload
            return control_pb2.Payload(descriptor=payload.descriptor, size=len(payload))
        return control_pb2.Payload(data=bytes(view_of(payload)))

    def size(self, payload: Payload) -> int:
        """Bytes that ``message`` takes on the stream."""
        return 32 if isinstance(payload, Blob) and self.shares_memory else 32 + len(payload)

    def opened(self, descriptor: int) -> None:
        self._kept.pop(descriptor, None)

    def close(self) -> None:
        """Nobody will open anything any more."""
        self._kept.clear()


def received(message: control_pb2.Payload, pid: int, *, sealed: bool = False) -> Payload:
    """The payload that the process ``pid`` sent; see open_shared. Raises OSError if it can't be opened."""
    if not message.descriptor:
        return message.data
    return open_shared(pid, Shared(message.descriptor, message.size), sealed=sealed)
