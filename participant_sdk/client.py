"""The plainest way to take part: a blocking stream of messages.

::

    with client.connection("host:50051") as (consume, dispatch):
        dispatch(stream_pb2.ParticipantMessage())  # passes the initiative to the coordinator
        while True:
            dispatch(answer(consume()))

The coordinator has at most one message in flight, and each wants exactly one answer. Nothing is retried here:
participant_sdk.Participant reconnects by itself. What a connection does is connection.py's business, which
this waits for.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

from participant_sdk import connection as _asyncio
from participant_sdk.background import background_loop, wait_for
from participant_sdk.errors import ConnectionClosed
from protos import stream_pb2
from protos.bearer import Token
from protos.tls import TLS

__all__ = ["Connection", "connection"]

T = TypeVar("T")


class Connection:
    """One stream to the coordinator; ``consume, dispatch = connection`` takes it apart.

    A context manager: leaving it says goodbye to the coordinator and closes the stream.
    """

    def __init__(self, connection: _asyncio.Connection) -> None:
        self._connection = connection
        self._loop: AbstractEventLoop | None = None
        self._exit = ExitStack()

    @property
    def address(self) -> str:
        """The coordinator's."""
        return self._connection.address

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._loop = stack.enter_context(background_loop())
            self._wait(self._connection.__aenter__)
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._exit:
            try:
                self._wait(self._connection.__aexit__, kind, error, traceback)
            finally:
                self._loop = None

    def __iter__(self) -> Iterator[Any]:
        yield self.consume
        yield self.dispatch

    def consume(self) -> stream_pb2.ServerMessage:
        """Blocks until the coordinator's next message, however long that takes; Ctrl-C interrupts it.

        Raises Reconnect where the coordinator asks for that, and else the ParticipantError that says how the
        stream ended: ConnectionClosed, ConnectionLost, ProtocolError, Rejected.
        """
        return self._wait(self._connection.consume)

    def dispatch(self, message: stream_pb2.ParticipantMessage) -> None:
        """Sends a message: the first one passes the initiative to the coordinator, each other one answers
        exactly one message of consume.

        An empty first message is anonymous; if the connection was given an id or attributes, a hello that
        carries them goes in its place. Raises the ParticipantError that says how the stream ended, if it has.
        """
        self._wait(self._connection.dispatch, message)

    def _wait(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        if self._loop is None:
            raise ConnectionClosed(
                f"the connection to {self.address} isn't open", "use it inside of its `with` block"
            )
        return wait_for(function(*arguments), self._loop)


def connection(
    address: str,
    *,
    participant_id: str = "",
    attributes: Mapping[str, str] | None = None,
    tls: TLS | bool | None = None,
    token: Token | None = None,
) -> Connection:
    """A connection to the coordinator at ``address`` (``host:port``), to be used in a ``with`` statement.

    ``participant_id`` is a stable name for this participant (else the coordinator makes one up), and
    ``attributes`` what callers may select it by, such as ``{"region": "eu"}``.

    ``tls`` says whom to trust and who this is, True stands for TLS() (whom the system trusts), and without it
    the connection is in plaintext. ``token`` is what the coordinator knows this participant by, or the Path
    of a file that holds it; it is only sent over TLS, or to this machine. Files are read now, for mistakes in
    them, and again when the connection is opened.

    Raises AddressError for a bad address, and CredentialsError for files or a token that can't be used. That
    nobody is there shows in the first dispatch or consume, and so does what TLS fails of.
    """
    return Connection(
        _asyncio.Connection(
            address, participant_id=participant_id, attributes=attributes, tls=tls, token=token
        )
    )
