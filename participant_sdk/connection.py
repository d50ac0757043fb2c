"""A stream as two functions, consume and dispatch, in asyncio.

Decides what the first message is and what an instruction to reconnect looks like to a caller of the two. It
doesn't decide whose turn it is: the coordinator refuses a message out of turn, and says so. The public doors
are aio.connection and, blocking, client.connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from participant_sdk.address import check_address
from participant_sdk.credentials import Credentials
from participant_sdk.errors import ConnectionClosed, Reconnect
from participant_sdk.hello import check_attributes, check_id, hello
from participant_sdk.stream import Stream
from protos import stream_pb2
from protos.bearer import Token
from protos.tls import TLS


class Connection:
    """One stream to the coordinator; ``consume, dispatch = connection`` takes it apart.

    An asynchronous context manager. Leaving it says goodbye to the coordinator and closes the stream.
    """

    def __init__(
        self,
        address: str,
        *,
        participant_id: str = "",
        attributes: Mapping[str, str] | None = None,
        tls: TLS | bool | None = None,
        token: Token | None = None,
    ) -> None:
        self.address = check_address(address)
        self._credentials = Credentials.of(tls, token)
        self._credentials.check(address)
        self._hello: stream_pb2.ParticipantMessage | None = None
        if check_id(participant_id) or attributes:
            self._hello = hello(participant_id, check_attributes(attributes), accepts_cancel=False)
        self._stream: Stream | None = None
        self._spoke = self._left = False

    async def __aenter__(self) -> Self:
        self._stream = Stream(self.address, self._credentials, slicing=False)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        stream = self._open_stream()
        self._stream = None
        if self._spoke:
            await stream.leave(None if self._left else "")
        else:
            await stream.close()

    def __iter__(self) -> Iterator[Any]:
        yield self.consume
        yield self.dispatch

    async def consume(self) -> stream_pb2.ServerMessage:
        """Waits for the coordinator's next message, however long that takes.

        Raises Reconnect where the coordinator asks for that, and else the ParticipantError that says how the
        stream ended: ConnectionClosed, ConnectionLost, ProtocolError, Rejected. Cancelling it loses nothing.
        """
        message = (await self._open_stream().read()).message
        if message.WhichOneof("kind") == "reconnect":
            raise Reconnect(message.reconnect.delay_seconds, message.reconnect.address or self.address)
        return message

    async def dispatch(self, message: stream_pb2.ParticipantMessage) -> None:
        """Sends a message: the first one passes the initiative to the coordinator, each other one answers
        exactly one message of consume.

        An empty first message is anonymous; if the connection was given an id or attributes, a hello that
        carries them goes in its place. Raises the ParticipantError that says how the stream ended, if it has.
        """
        if not isinstance(message, stream_pb2.ParticipantMessage):
            raise TypeError(f"dispatch() takes a stream_pb2.ParticipantMessage, not {type(message).__name__}")
        stream = self._open_stream()
        if not self._spoke and self._hello is not None and message.WhichOneof("kind") is None:
            message = self._hello
        self._spoke = True
        self._left = message.WhichOneof("kind") == "leave"
        await stream.write(message.SerializeToString())

    def _open_stream(self) -> Stream:
        if self._stream is None:
            raise ConnectionClosed(
                f"the connection to {self.address} isn't open", "use it inside of its `with` block"
            )
        return self._stream
