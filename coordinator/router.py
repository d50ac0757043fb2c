"""The coordinator's ROUTER socket: where it is bound, who is behind which routing id, and what can't be read.

What the messages mean is decided elsewhere: downlink.py and workers.py. Here strangers and garbage end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import zmq
from google.protobuf.message import DecodeError

from manager.errors import StartError
from manager.listen import Address
from manager.logs import Sparingly
from manager.sockets import LinkSocket
from protos import link_pb2
from protos.frames import Buffer, MalformedFramesError, Shared, check_report, unpack

log = logging.getLogger("muster.coordinator")

MAX_SOCKET_PATH = 107
"""Bytes that a Unix socket's path may have on Linux."""

Payloads = Sequence[Buffer | Shared]


class Router:
    """Receives messages, and sends some. ``on_message`` gets the routing id, the message and its payloads."""

    def __init__(
        self, link: str, path: Path, on_message: Callable[[bytes, link_pb2.Upward, Payloads], None]
    ) -> None:
        """Binds ``link``: ``ipc``, the socket ``path``, or ``tcp://host:port``. Raises StartError."""
        self._on_message = on_message
        self._sparingly = Sparingly(log)
        self.errors = 0
        """Messages that could not be read, and hellos that were refused, so far."""
        self._socket = LinkSocket(zmq.ROUTER, self._received)
        try:
            self.endpoint = self._bind(link, path)
        except BaseException:
            self._socket.close()
            raise

    def start(self) -> None:
        """Begins to deliver messages."""
        self._socket.start()

    def close(self) -> None:
        self._socket.close()

    def send(self, identity: bytes, frames: Sequence[Buffer]) -> None:
        self._socket.send([identity, *frames])

    def answer(self, identity: bytes, message: link_pb2.Downward) -> None:
        self._socket.send([identity, message.SerializeToString()])

    def complain(self, kind: str, text: str) -> None:
        """Counts and logs what a stranger, or a manager that is out of its mind, has sent."""
        self.errors += 1
        self._sparingly.warning(kind, "%s", text)

    def _received(self, frames: list[Buffer]) -> None:
        try:
            message = link_pb2.Upward.FromString(bytes(frames[1]) if len(frames) > 1 else b"\xff")
            payloads = unpack(frames[2:], message.report.payloads)
            check_report(message.report)
        except (DecodeError, MalformedFramesError) as error:
            self.complain("unreadable", f"ignored a message on the link that can't be read: {error}")
            return
        self._on_message(bytes(frames[0]), message, payloads)

    def _bind(self, link: str, path: Path) -> str:
        socket = self._socket.socket
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        if link != "ipc":
            address = Address.parse(link.removeprefix("tcp://"))
            try:
                socket.setsockopt(zmq.IPV6, int(":" in address.host))
                socket.bind(f"tcp://{address}" if address.port else f"tcp://{address}"[:-1] + "*")
            except zmq.ZMQError as error:
                raise StartError(f"can't listen on the link {link}: {error}") from None
            return socket.getsockopt_string(zmq.LAST_ENDPOINT)
        if len(str(path).encode()) > MAX_SOCKET_PATH:
            raise StartError(f"the path of the run directory is too long for a socket in it: {path}")
        try:
            socket.bind(f"ipc://{path}")
        except zmq.ZMQError as error:
            raise StartError(f"can't make the link's socket {path}: {error}") from None
        return f"ipc://{path}"
