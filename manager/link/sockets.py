"""A ZeroMQ socket on an asyncio event loop, for the link.

ZeroMQ's file descriptor tells only *changes*, so after every send and every receive the socket is asked
again whether something has come. Messages are taken in bounded turns, so that a busy link does not keep the
loop from its other work. What can't be sent at once is dropped: end.py numbers messages, and a dropped
one is asked for again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from manager.link.keys import WorkerKeys
from manager.logs import Sparingly
from protos.frames import OWN_FRAME, Buffer

log = logging.getLogger("muster.link")

MAX_TURN = 64
"""Messages taken before the loop gets a turn."""

HIGH_WATER_MARK = 2_000
"""Messages that ZeroMQ queues per peer and direction. Each is a batch."""

RETRY_INTERVAL = 0.5
"""Seconds until a worker tries again after a handshake that has failed."""

MONITOR = "inproc://muster.handshakes"
FAILED_HANDSHAKES = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)

# As plain numbers: to put members of an enum together takes a microsecond each time.
_READABLE: Final = int(zmq.POLLIN)
_LAST: Final = int(zmq.DONTWAIT)
_MORE: Final = int(zmq.DONTWAIT) | int(zmq.SNDMORE)

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


@dataclass(frozen=True, slots=True)
class Failure:
    """Of a handshake."""

    why: str
    final: bool  # ZeroMQ doesn't try again by itself


class LoopSocket:
    """A socket whose messages ``on_message`` gets, as the frames of each."""

    def __init__(self, socket: zmq.Socket[bytes], on_message: Callable[[list[Buffer]], None]) -> None:
        self.socket = socket
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._fd = int(self.socket.getsockopt(zmq.FD))
        self._reading: asyncio.Handle | None = None
        self._closed = False

    def start(self) -> None:
        """Begins to deliver messages. The socket has been bound or connected."""
        self._loop.add_reader(self._fd, self._readable)
        self._readable()

    def close(self, linger: float = 0.0) -> None:
        """Lets what is queued leave for at most ``linger`` seconds."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._fd)
        if self._reading is not None:
            self._reading.cancel()
        self.socket.close(linger=int(linger * 1000))

    def _check(self) -> None:
        if self._reading is None and not self._closed and self._pending():
            self._reading = self._loop.call_soon(self._readable)

    def _pending(self) -> bool:
        return bool(int(self.socket.getsockopt(zmq.EVENTS)) & _READABLE)

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
        """The frames of the next message."""
        return list[Buffer](self.socket.recv_multipart(zmq.DONTWAIT))


class LinkSocket(LoopSocket):
    """One end of the link: sends and receives multipart messages."""

    def __init__(self, kind: int, on_message: Callable[[list[Buffer]], None]) -> None:
        # A context of its own: closing it can't disturb, and isn't disturbed by, other users of ZeroMQ.
        self._context = zmq.Context(io_threads=1)
        super().__init__(self._context.socket(kind), on_message)
        for option, value in COMMON_OPTIONS.items():
            self.socket.setsockopt(option, value)
        # The header and the packed payloads; a ROUTER gets the peer's identity before them.
        self._small_frames = 3 if kind == zmq.ROUTER else 2
        self._companions: list[LoopSocket] = []

    def companion(self, kind: int, on_message: Callable[[list[Buffer]], None]) -> LoopSocket:
        """Another socket in the same context, for use within this process. It is closed with this one."""
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.RCVHWM, 0)  # ZeroMQ's own thread must never have to wait for this one
        self._companions.append(LoopSocket(socket, on_message))
        return self._companions[-1]

    def watch_handshakes(self, on_failed: Callable[[Failure], None], events: int = FAILED_HANDSHAKES) -> None:
        """Tells of each peer with which a handshake fails."""
        watch = self.companion(zmq.PAIR, lambda frames: on_failed(_failure(frames)))
        self.socket.monitor(MONITOR, events)
        watch.socket.connect(MONITOR)
        watch.start()

    def connect(self, endpoint: str, identity: bytes, keys: WorkerKeys | None) -> None:
        """Connects, again whenever the connection breaks, and begins to deliver messages.

        ``keys`` are for an end that asks for them.
        """
        self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        self.socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
        if keys is not None:
            self.socket.setsockopt(zmq.CURVE_SERVERKEY, keys.coordinator)
            self.socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.pair.public)
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, keys.pair.secret)
            self._try_again_after_failures(endpoint)
        self.socket.connect(endpoint)
        self.start()

    def _try_again_after_failures(self, endpoint: str) -> None:
        """Where somebody refuses, or speaks no CURVE, ZeroMQ gives up.

        But somebody else may just have the port until the right one is back.
        """
        sparingly = Sparingly(log)

        def failed(failure: Failure) -> None:
            text = "can't connect to the coordinator at %s: %s"
            sparingly.warning("handshake", text, endpoint, failure.why)
            if failure.final:
                self._loop.call_later(RETRY_INTERVAL, again)

        def again() -> None:
            if not self._closed:
                with contextlib.suppress(zmq.ZMQError):  # it has been given up already
                    self.socket.disconnect(endpoint)
                self.socket.connect(endpoint)

        self.watch_handshakes(failed)

    def send(self, frames: Sequence[Buffer]) -> bool:
        """Sends without waiting. False if ZeroMQ could not take the message: the peer is gone or too slow."""
        if self._closed:
            return False  # what was to be done in the loop's next turn may come too late
        try:
            send, last = self.socket.send, len(frames) - 1
            for position, frame in enumerate(frames):
                flags = _LAST if position == last else _MORE
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
        if self._closed:
            return
        if self._companions:
            self.socket.disable_monitor()
        super().close(linger)
        for companion in self._companions:
            companion.close()
        self._context.term()

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


def _failure(frames: Sequence[Buffer]) -> Failure:
    """What a socket's monitor says."""
    event = parse_monitor_message([bytes(frame) for frame in frames])
    match event["event"], event["value"]:
        case zmq.EVENT_HANDSHAKE_FAILED_AUTH, _:
            return Failure("the key was refused", final=True)
        case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC:
            return Failure("the keys don't go together", final=True)
        case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            return Failure("the peer uses no keys", final=True)
        case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, code:
            return Failure(f"the peer keeps to no protocol (0x{code:x})", final=True)
        case _, errno.EAGAIN:
            return Failure("the peer said nothing", final=False)
        case _:
            return Failure("the peer hung up: it has no keys, or others", final=False)
