"""The blocking Participant: the asyncio one (aio.Participant), run in the background and waited for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from participant_sdk.address import check_address
from participant_sdk.background import background_loop, wait_for
from participant_sdk.base import BaseParticipant
from participant_sdk.errors import ParticipantError
from participant_sdk.signals import stop_on_signals
from protos.bearer import Token
from protos.tls import TLS

log = logging.getLogger("muster.participant")

Run: TypeAlias = Callable[[BaseParticipant], Awaitable[None]]


class Participant(BaseParticipant):
    """Takes part until it is told to stop::

        participant = Participant("hospital-7", {"region": "eu"})

        @participant.on("train")
        def train(instruction):
            weights = fit(instruction.tensors, epochs=instruction.config["epochs"])
            return Result(tensors=weights, weight=len(dataset))

        participant.run("coordinator.example:50051")

    ``participant_id`` is a stable name (else the coordinator makes one up); ``attributes`` are what callers
    may select it by. ``tls`` and ``token`` are its own credentials, for a process of several participants;
    with one, giving them to run() does as well. Raises TypeError for an id or attributes that aren't text.
    """

    def run(
        self,
        address: str,
        *,
        attempts: int | None = None,
        tls: TLS | bool | None = None,
        token: Token | None = None,
    ) -> None:
        """Connects and carries out instructions, and connects again whenever the coordinator is lost, with
        exponential backoff: for ever, or until ``attempts`` more have failed in a row.

        Returns after stop() and, in the main thread, after SIGINT or SIGTERM, having said goodbye to the
        coordinator. A handler at work is asked to stop and waited for, but its answer is not sent any more; a
        second signal doesn't wait.

        ``tls`` says whom to trust and who this is; True stands for TLS() (whom the system trusts), and
        without it the connection is in plaintext. ``token`` is what the coordinator knows this participant
        by, or the Path of a file that holds it; it is only sent over TLS, or to this machine. Files are read
        anew for each connection, so that renewed ones are used.

        Raises AddressError for a bad address, CredentialsError for files or a token that can't be used from
        the start, Rejected if the coordinator refuses this participant, and, with ``attempts``, what the last
        one failed of (ConnectionLost, ConnectionClosed, ProtocolError, CredentialsError).
        """
        for error in run_all([self], address, attempts=attempts, tls=tls, token=token):
            if error is not None:
                raise error


def run_all(
    participants: Sequence[BaseParticipant],
    address: str,
    *,
    attempts: int | None = None,
    tls: TLS | bool | None = None,
    token: Token | None = None,
) -> list[ParticipantError | None]:
    """Runs all of them in one event loop, as Participant.run does one, until the last has ended.

    Returns how each ended: None after a stop, else its error. One that ends doesn't disturb the others.
    """
    check_address(address)

    def stop() -> None:
        for participant in participants:
            participant.stop()

    def run(participant: BaseParticipant) -> Awaitable[None]:
        return participant._run(address, attempts, tls, token)

    with background_loop() as loop, stop_on_signals(stop):
        return wait_for(_run_all(participants, run), loop)


async def _run_all(participants: Sequence[BaseParticipant], run: Run) -> list[ParticipantError | None]:
    tell = len(participants) > 1  # else whoever waits learns it at once
    try:
        async with asyncio.TaskGroup() as group:
            runs = [group.create_task(_outcome(each, run, tell)) for each in participants]
    except BaseExceptionGroup as bugs:
        raise bugs.exceptions[0] from None
    return [each.result() for each in runs]


async def _outcome(participant: BaseParticipant, run: Run, tell: bool) -> ParticipantError | None:
    try:
        await run(participant)
    except ParticipantError as error:
        if tell:
            log.error("%s: %s", participant.participant_id or "a participant", error)
        return error
    return None
