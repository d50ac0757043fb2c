"""A ZeroMQ socket on an asyncio event loop, for the link.

ZeroMQ's file descriptor tells only *changes*, so after every send and every receive the socket is asked
again whether something has come. Messages are taken in bounded turns, so that a busy link does not keep the
loop from its other work. What can't be sent at once is dropped: linkend.py numbers messages, and a dropped
one is asked for again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import zmq

from protos.frames import OWN_FRAME, Buffer

log = logging.getLogger("muster.link")

MAX_TURN = 64
"""Messages taken before the loop gets a turn."""

HIGH_WATER_MARK = 2_000
"""Messages that ZeroMQ queues per peer and direction. Each is a batch."""

COMMON_OPTIONS = {
    zmq.LINGER: 0,
    zmq.SNDHWM: HIGH_WATER_MARK,
    zmq.RCVHWM: HIGH_WATER_MARK,
    zmq.HEARTBEAT_IVL: 500,
    zmq.HEARTBEAT_TIMEOUT: 1_500,
    zmq.HEARTBEAT_TTL: 2_000,
    zmq.HANDSHAKE_IVL: 3_000,
    zmq.MAXMSGSIZE: 2**31,
}


def routing_id(worker: int, incarnation: int, pid: int) -> bytes:
    """By which ZeroMQ knows a manager."""
    return f"{worker}.{incarnation}.{pid}".encode()


class LinkSocket:
    """Sends and receives multipart messages; ``on_message`` gets the frames of each."""

    def __init__(self, kind: int, on_message: Callable[[list[Buffer]], None]) -> None:
        # A context of its own: closing it can't disturb, and isn't disturbed by, other users of ZeroMQ.
        self._context = zmq.Context(io_threads=1)
        self.socket: zmq.Socket[bytes] = self._context.socket(kind)
        for option, value in COMMON_OPTIONS.items():
            self.socket.setsockopt(option, value)
        self._on_message = on_message
        # The header and the packed payloads; a ROUTER gets the peer's identity before them.
        self._small_frames = 3 if kind == zmq.ROUTER else 2
        self._loop = asyncio.get_running_loop()
        self._fd = int(self.socket.getsockopt(zmq.FD))
        self._reading: asyncio.Handle | None = None
        self._closed = False

    def start(self) -> None:
        """Begins to deliver messages. The socket has been bound or connected."""
        self._loop.add_reader(self._fd, self._readable)
        self._readable()

    def send(self, frames: Sequence[Buffer]) -> bool:
        """Sends without waiting. False if ZeroMQ could not take the message: the peer is gone or too slow."""
        if self._closed:
            return False  # what was to be done in the loop's next turn may come too late
        try:
            send, last = self.socket.send, len(frames) - 1
            for position, frame in enumerate(frames):
                flags = zmq.DONTWAIT if position == last else zmq.DONTWAIT | zmq.SNDMORE
                # Copying is cheaper than keeping count of who still needs a small buffer.
                send(frame, flags, copy=len(frame) < OWN_FRAME)
            return True
        except zmq.Again:
            log.debug("the link's queue is full; a message will have to be repeated")
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
        finally:
            self._check()
        return False

    def close(self, linger: float = 0.0) -> None:
        """Lets what is queued leave for at most ``linger`` seconds."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._fd)
        if self._reading is not None:
            self._reading.cancel()
        self.socket.close(linger=int(linger * 1000))
        self._context.term()

    def _check(self) -> None:
        if self._reading is None and not self._closed and self._pending():
            self._reading = self._loop.call_soon(self._readable)

    def _pending(self) -> bool:
        return bool(int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def _readable(self) -> None:
        self._reading = None
        for _ in range(MAX_TURN):
            # To ask costs less than the exception of a receive in vain.
            if self._closed or not self._pending():
                return
            try:
                self._on_message(self._receive())
            except Exception:
                log.exception("a message on the link could not be handled")
        self._check()

    def _receive(self) -> list[Buffer]:
        """The frames of the next message. Those that hold a large payload each aren't copied."""
        socket, frames = self.socket, list[Buffer]()
        while True:
            if len(frames) < self._small_frames:
                frames.append(socket.recv(zmq.DONTWAIT))
            else:
                frames.append(socket.recv(zmq.DONTWAIT, copy=False).buffer)
            if not socket.getsockopt(zmq.RCVMORE):
                return frames
