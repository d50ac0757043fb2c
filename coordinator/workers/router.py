"""The coordinator's ROUTER socket: where it is bound, who may connect, and what can't be read.

Over TCP it asks peers for keys (manager/link/keys.py). What the messages mean is decided elsewhere:
downlink.py and links.py. Here strangers and garbage end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import zmq
from google.protobuf.message import DecodeError

from coordinator.unix_socket import MAX_PATH
from manager.errors import StartError
from manager.link.keys import ZAP_DOMAIN, CoordinatorKeys
from manager.link.sockets import FAILED_HANDSHAKES, Failure, LinkSocket
from manager.listen import Address
from manager.logs import Sparingly
from protos import link_pb2
from protos.frames import Buffer, MalformedFramesError, Shared, check_report, unpack

log = logging.getLogger("muster.coordinator")

Payloads = Sequence[Buffer | Shared]


class Router:
    """Receives messages, and sends some. ``on_message`` gets the routing id, the message and its payloads."""

    def __init__(
        self,
        link: str,
        path: Path,
        on_message: Callable[[bytes, link_pb2.Upward, Payloads], None],
        keys: CoordinatorKeys | None = None,
    ) -> None:
        """Binds ``link``: ``ipc``, the socket ``path``, or ``tcp://host:port``, for workers with keys.

        Raises StartError.
        """
        self._on_message = on_message
        self._sparingly = Sparingly(log)
        self.errors = 0
        """Messages that could not be read, hellos and peers that were refused, so far."""
        self._socket = LinkSocket(zmq.ROUTER, self._received)
        self._socket.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        try:
            if link == "ipc":
                self.endpoint = self._bind(path)
            elif keys is None:
                raise StartError(f"the link {link} needs keys")
            else:
                self._admit_only(keys)
                self.endpoint = self._bind_tcp(link)
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

    # Where it is bound

    def _bind(self, path: Path) -> str:
        if len(str(path).encode()) > MAX_PATH:
            raise StartError(f"the path of the run directory is too long for a socket in it: {path}")
        try:
            self._socket.socket.bind(f"ipc://{path}")
            path.chmod(0o600)  # until now its directory has kept others out
        except (zmq.ZMQError, OSError) as error:
            raise StartError(f"can't make the link's socket {path}: {error.strerror or error}") from None
        return f"ipc://{path}"

    def _bind_tcp(self, link: str) -> str:
        """Returns where workers on this machine connect."""
        address, socket = Address.parse(link.removeprefix("tcp://")), self._socket.socket
        try:
            socket.setsockopt(zmq.IPV6, int(":" in address.host))
            socket.bind(f"tcp://{address}" if address.port else f"tcp://{address}"[:-1] + "*")
        except zmq.ZMQError as error:
            raise StartError(f"can't listen on the link {link}: {error}") from None
        bound = Address.parse(socket.getsockopt_string(zmq.LAST_ENDPOINT).removeprefix("tcp://"))
        return f"tcp://{Address(_HERE.get(bound.host, bound.host), bound.port)}"

    # Who may connect

    def _admit_only(self, keys: CoordinatorKeys) -> None:
        """Whoever has none of these keys doesn't get as far as to send a message."""
        self._allowed = keys.allowed
        # First of all: without anybody to ask ZeroMQ would refuse the right ones, too.
        self._doorkeeper = self._socket.companion(zmq.REP, self._asked)
        self._doorkeeper.socket.bind("inproc://zeromq.zap.01")
        self._doorkeeper.start()
        socket = self._socket.socket
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.pair.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.pair.secret)
        socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody gets in unasked
        others = FAILED_HANDSHAKES & ~zmq.EVENT_HANDSHAKE_FAILED_AUTH  # those _asked tells of
        self._socket.watch_handshakes(self._failed, others)

    def _asked(self, frames: list[Buffer]) -> None:
        """ZeroMQ has a peer that has proved to have a key: may it connect? (RFC 27)"""
        version, request, domain, address, _, mechanism, *credentials = map(bytes, frames)
        curve = (domain, mechanism, len(credentials)) == (ZAP_DOMAIN, b"CURVE", 1)
        allowed = curve and credentials[0] in self._allowed
        verdict = [b"200", b"OK", b"worker"] if allowed else [b"400", b"unknown key", b""]
        self._doorkeeper.socket.send_multipart([version, request, *verdict, b""])
        if not allowed:
            who = f"from {address.decode()}: its key is not among those of the workers"
            self.complain("key", f"refused a peer on the link {who}")

    def _failed(self, failure: Failure) -> None:
        self.complain(failure.why, f"refused a peer on the link: {failure.why}")


_HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""Where to reach what is bound to all addresses."""
