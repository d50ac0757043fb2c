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

__all__ = ["Connection", "Participant", "connection"]


def connection(
    address: str, *, participant_id: str = "", attributes: Mapping[str, str] | None = None
) -> Connection:
    """A connection to the coordinator at ``address`` (``host:port``), for an ``async with`` statement.

    ``participant_id`` is a stable name for this participant (else the coordinator makes one up), and
    ``attributes`` what callers may select it by, such as ``{"region": "eu"}``.

    Raises AddressError for a bad address. That nobody is there shows in the first dispatch or consume.
    """
    return Connection(address, participant_id=participant_id, attributes=attributes)


class Participant(BaseParticipant):
    """participant_sdk.Participant for code that has an event loop already. It handles no signals: call stop()
    from a handler of your loop's, or cancel run()."""

    async def run(self, address: str, *, attempts: int | None = None) -> None:
        """Connects and carries out instructions, and connects again whenever the coordinator is lost, with
        exponential backoff: for ever, or until ``attempts`` more have failed in a row.

        Returns after stop(), having said goodbye to the coordinator. If it is cancelled it says goodbye, too,
        and doesn't wait for a plain function that is at work.

        Raises AddressError for a bad address, Rejected if the coordinator refuses this participant, and, with
        ``attempts``, what the last one failed of (ConnectionLost, ConnectionClosed, ProtocolError).
        """
        await self._run(check_address(address), attempts)
