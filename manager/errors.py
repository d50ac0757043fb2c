"""What callers can catch, in single-process and many-process mode alike.

::

    MusterError
    ├── NotEnoughParticipants   (also a TimeoutError)  get_participants or lease ran into its timeout
    ├── CallError               one participant's call ended without a result
    │   ├── ParticipantFailed   the participant answered with a failure of its own
    │   ├── ParticipantLost     its stream or its worker ended before it answered
    │   ├── CallTimeout         (also a TimeoutError)  it had not answered by the call's deadline
    │   └── CallCancelled       the call was given up by its caller, or had its quorum
    ├── ReductionError          what workers have folded can't be put together
    ├── Closed                  what was asked has been closed
    └── StartError              a process could not start; the text says why and what to do
        └── AddressInUse        somebody else has the address

The coordinator adds its own below MusterError (coordinator/errors.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from protos import stream_pb2


class MusterError(Exception):
    """Base of all errors that Muster raises on purpose."""


class NotEnoughParticipants(MusterError, TimeoutError):
    """Fewer participants than asked for were there by the timeout.

    Attributes:
        asked: the minimum that was asked for.
        matching: how many were free and matched ``where`` when the time ran out.
        matching_by_worker: the same by worker index (only workers that had any).
        taken: how many more matched, but were leased by somebody, or (for a lease) at work.
        pooled: how many participants there were in all.
        waited: seconds.
    """

    def __init__(
        self,
        *,
        asked: int,
        matching_by_worker: Mapping[int, int],
        taken: int,
        pooled: int,
        waited: float,
        where: Mapping[str, str],
    ) -> None:
        self.asked = asked
        self.matching = sum(matching_by_worker.values())
        self.matching_by_worker = dict(matching_by_worker)
        self.taken = taken
        self.pooled = pooled
        self.waited = waited
        wanted = f"{asked} participant{'' if asked == 1 else 's'}"
        if where:
            wanted += " where " + ", ".join(f"{key}={value}" for key, value in where.items())
        spread = ", ".join(
            f"worker {worker}: {count}" for worker, count in sorted(matching_by_worker.items())
        )
        super().__init__(
            f"asked for {wanted}; after {waited:.1f} s "
            + f"there {'was' if self.matching == 1 else 'were'} {self.matching}"
            + (f" ({spread})" if spread else "")
            + (f" and {taken} that {'is' if taken == 1 else 'are'} leased or at work" if taken else "")
            + (f", of {pooled} pooled in all" if pooled != self.matching else "")
        )


class CallError(MusterError):
    """One participant's call ended without a result. ``participant_id`` says whose."""

    def __init__(self, participant_id: str, text: str) -> None:
        self.participant_id = participant_id
        super().__init__(text)


class ParticipantFailed(CallError):
    """The participant answered that it failed. ``failure`` is its own account (stream_pb2.Failure)."""

    def __init__(self, participant_id: str, failure: stream_pb2.Failure) -> None:
        self.failure = failure
        code = stream_pb2.Failure.Code.Name(failure.code) if failure.code in range(6) else str(failure.code)
        super().__init__(participant_id, f"participant {participant_id} failed with {code}: {failure.text}")


class ParticipantLost(CallError):
    """The participant's stream, or the worker that held it, ended before the answer was there."""

    def __init__(self, participant_id: str) -> None:
        super().__init__(participant_id, f"participant {participant_id} was lost before it answered")


class CallTimeout(CallError, TimeoutError):
    """The participant had not answered by the deadline. Its late answer will be dropped."""

    def __init__(self, participant_id: str, timeout: float | None) -> None:
        within = "in time" if timeout is None else f"within {timeout:g} s"
        super().__init__(participant_id, f"participant {participant_id} did not answer {within}")


class CallCancelled(CallError):
    """The call was given up before the participant answered."""

    def __init__(self, participant_id: str) -> None:
        super().__init__(participant_id, f"the call to participant {participant_id} was cancelled")


class ReductionError(MusterError):
    """What the workers have folded can't be put together to one answer. The text says why."""


class Closed(MusterError):
    """The manager, coordinator or connection was closed while, or before, it was asked."""


class StartError(MusterError):
    """A process could not start. The text says why and what to do."""


class AddressInUse(StartError):
    """Another process listens on the ``address``."""

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__(
            f"{address} is in use: by another program, another coordinator (perhaps of this process), or "
            f"workers of one that was killed (these end within half a minute); stop it, wait, or take "
            f"another port"
        )
