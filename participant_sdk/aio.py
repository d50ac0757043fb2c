"""The asyncio twin: the same connection and the same Participant, to be awaited.

::

    async with aio.connection("host:50051") as (consume, dispatch):
        await dispatch(stream_pb2.ParticipantMessage())
        while True:
            await dispatch(answer(await consume()))

The blocking API (client.py, participant.py) is built on this one.
"""

from __future__ import annotations

from collections.abc import Mapping

from participant_sdk.address import check_address
from participant_sdk.base import BaseParticipant
from participant_sdk.connection import Connection
from protos.bearer import Token
from protos.tls import TLS

__all__ = ["Connection", "Participant", "connection"]


def connection(
    address: str,
    *,
    participant_id: str = "",
    attributes: Mapping[str, str] | None = None,
    tls: TLS | bool | None = None,
    token: Token | None = None,
) -> Connection:
    """A connection to the coordinator at ``address`` (``host:port``), for an ``async with`` statement.

    ``participant_id`` is a stable name for this participant (else the coordinator makes one up), and
    ``attributes`` what callers may select it by, such as ``{"region": "eu"}``.

    ``tls`` says whom to trust and who this is, True stands for TLS() (whom the system trusts), and without it
    the connection is in plaintext. ``token`` is what the coordinator knows this participant by, or the Path
    of a file that holds it; it is only sent over TLS, or to this machine. Files are read now, for mistakes in
    them, and again when the connection is opened.

    Raises AddressError for a bad address, and CredentialsError for files or a token that can't be used. That
    nobody is there shows in the first dispatch or consume, and so does what TLS fails of.
    """
    return Connection(address, participant_id=participant_id, attributes=attributes, tls=tls, token=token)


class Participant(BaseParticipant):
    """participant_sdk.Participant for code that has an event loop already. It handles no signals: call stop()
    from a handler of your loop's, or cancel run()."""

    async def run(
        self,
        address: str,
        *,
        attempts: int | None = None,
        tls: TLS | bool | None = None,
        token: Token | None = None,
    ) -> None:
        """Connects and carries out instructions, and connects again whenever the coordinator is lost, with
        exponential backoff: for ever, or until ``attempts`` more have failed in a row. ``tls`` and ``token``,
        if given, take the place of the participant's own; files are read anew for each connection.

        Returns after stop(), having said goodbye to the coordinator. If it is cancelled it says goodbye, too,
        and doesn't wait for a plain function that is at work.

        Raises AddressError for a bad address, CredentialsError for files or a token that can't be used from
        the start, Rejected if the coordinator refuses this participant, and, with ``attempts``, what the last
        one failed of (ConnectionLost, ConnectionClosed, ProtocolError, CredentialsError).
        """
        await self._run(check_address(address), attempts, tls, token)
