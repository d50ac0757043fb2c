"""Holds participants' streams and gives access to them.

One worker process of a cluster (``python -m manager``, spawned by the coordinator) and the single-process
server (``create_participant_manager``) are both here, with all that they share with the coordinator. Files
marked ★ are sans-IO: they decide, and do no input or output.

================  =============================================================================
**deciding**
members.py        what is known of one pooled participant
roster.py         the members of a cohort, and what is worked out of them once
pool.py ★         who gets which participants, and when
call.py           one call, and how it stands
assignments.py ★  what each participant works on, and what it gets next
calls.py ★        how each call ends for each of its participants
deadlines.py ★    which deadlines have come
shares.py ★       what a reducing call knows of each worker's share
session.py ★      what each message means in the life of one stream
admission.py ★    who may join now, and when the others are told to come back
crowds.py ★       how many streams one address may have
connections.py ★  which connections without a stream are closed
refused.py        why somebody was turned away, cut off or closed, and how many were
identity.py ★     who a participant is, by its credentials
tokens.py ★       what a file of tokens says
peer_certificate.py ★  what gRPC doesn't see in a participant's certificate
sequence.py ★     what of a link has to be sent again
liveness.py ★     whether the other side of a link lives
linkend.py ★      how one end of a link loses nothing
confirmations.py ★  what may be done once the coordinator has heard of something
uplink.py ★       the manager's side of the link
**reducing**
batch.py ★        a worker's share of a reducing call
folding.py        folds results as they arrive
arithmetic.py     the arithmetic of that, which needs NumPy
contributions.py  what reducers take in, keep and give
schema.py         which tensors results have, and whether they are the same
reducers.py       what a reducer is, and which one a name stands for
elementwise.py    the built-in ones: sum, mean, weighted_mean, min, max
accumulators.py   one tensor's share of a reduction
measures.py       one metric's share of a reduction
**for callers**
participants.py   get_participants and lease
cohort.py         the participants that a caller got
proxy.py          one participant
outcome.py        what became of a call
answers.py        its results one by one, as they arrive
arguments.py      what callers may pass
typed.py          settings checked against the types of their fields
backend.py        what these need of whoever holds the participants
errors.py         what can be caught
**doing**
dispatcher.py     carries out what pool and calls decide
transport.py      what it needs of whoever holds the streams
servicer.py       reads the participants' streams
refusals.py       ends the streams of those who may not stay
blobs.py          large payloads that processes share
memory.py         shared memory that is used again
spool.py          room for large answers while they arrive
stream.py         writes to one of them
incoming.py       what participants say, read as far as a manager must
verdicts.py       how this side ends a stream
overdue.py        which streams have been waited for too long
limits.py         what a worker takes on at most
endpoint.py       the gRPC server around them
closing.py        looks at connections again and again, and closes some
open_sockets.py   the connections to a port of this process, seen and closed
gate.py           lets in who has credentials
certificates.py   the server's certificate, renewed while it runs
watched.py        files that are read again when they change
security.py       whether participants are served with TLS, and how they are known
server.py         the single-process server
orders.py         carries out what the coordinator orders
worker.py         the worker process
timeouts.py       how long each step of its end may take
reports.py        what a worker tells the coordinator, batched
sockets.py        ZeroMQ sockets on an event loop
link_keys.py      the keys of a link over TCP
usage.py          what this process uses
logs.py           how log records look
listen.py         the public address, reserved and shared
loop.py           an event loop in a thread, for the blocking API
cli.py            ``manager start``
options.py        how command-line options are declared
================  =============================================================================
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import protos  # noqa: F401 - before gRPC

if TYPE_CHECKING:
    from manager.call import OutcomeKind
    from manager.cohort import AsyncCohort, Cohort
    from manager.errors import (
        AddressInUse,
        CallCancelled,
        CallError,
        CallTimeout,
        Closed,
        MusterError,
        NotEnoughParticipants,
        ParticipantFailed,
        ParticipantLost,
        ReductionError,
        StartError,
    )
    from manager.outcome import Outcome, Progress, Reduced
    from manager.proxy import AsyncParticipantProxy, ParticipantProxy
    from manager.reducers import Contribution, Reducer, RefusedError
    from manager.security import Security
    from manager.server import ParticipantManager, Server, create_participant_manager
    from protos.messages import from_scalars, instruction
    from protos.tensors import to_array, to_arrays

# Loaded when first used: a command's --help needs none of it, and a worker little.
_FROM = {
    "manager.call": ["OutcomeKind"],
    "manager.cohort": ["AsyncCohort", "Cohort"],
    "manager.errors": [
        "AddressInUse",
        "CallCancelled",
        "CallError",
        "CallTimeout",
        "Closed",
        "MusterError",
        "NotEnoughParticipants",
        "ParticipantFailed",
        "ParticipantLost",
        "ReductionError",
        "StartError",
    ],
    "manager.outcome": ["Outcome", "Progress", "Reduced"],
    "manager.proxy": ["AsyncParticipantProxy", "ParticipantProxy"],
    "manager.server": ["ParticipantManager", "Server", "create_participant_manager"],
    "manager.reducers": ["Contribution", "Reducer", "RefusedError"],
    "manager.security": ["Security"],
    "protos.messages": ["from_scalars", "instruction"],
    "protos.tensors": ["to_array", "to_arrays"],
}
_MODULE_OF = {name: module for module, names in _FROM.items() for name in names}


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value


__all__ = [
    "AddressInUse",
    "AsyncCohort",
    "AsyncParticipantProxy",
    "CallCancelled",
    "CallError",
    "CallTimeout",
    "Closed",
    "Cohort",
    "Contribution",
    "MusterError",
    "NotEnoughParticipants",
    "Outcome",
    "OutcomeKind",
    "ParticipantFailed",
    "ParticipantLost",
    "ParticipantManager",
    "ParticipantProxy",
    "Progress",
    "Reduced",
    "Reducer",
    "ReductionError",
    "RefusedError",
    "Security",
    "Server",
    "StartError",
    "create_participant_manager",
    "from_scalars",
    "instruction",
    "to_array",
    "to_arrays",
]
