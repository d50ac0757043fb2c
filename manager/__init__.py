"""Holds participants' streams and gives access to them.

One worker process of a cluster (``python -m manager``, spawned by the coordinator) and the single-process
server (``create_participant_manager``) are both here, with all that they share with the coordinator. Files
marked ★ are sans-IO: they decide, and do no input or output.

===============  ==============================================================================
errors.py        what can be caught
typed.py         settings checked against the types of their fields
limits.py        what a worker takes on at most
listen.py        the public address, reserved and shared
liveness.py ★    whether the other side of a link lives, and whether this one was away
timeouts.py      how long each step of a worker's end may take
usage.py         what this process uses
logs.py          how log records look
loop.py          an event loop in a thread, for the blocking API
payloads/        where large payloads are
reducing/        folds many results into one
core/            decides who gets which participants, and how every call ends
api/             what callers hold in their hands: participants, cohorts, outcomes
access/          who a participant is, and how it knows that this is the server
serving/         the participants' streams: gRPC's server, and who may come, stay and go
link/            a worker's side of the link to its coordinator
server.py        the single-process server
worker.py        the worker process
options.py       how command-line options are declared
cli.py           ``manager start``
===============  ==============================================================================

Each imports only what stands above it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import protos  # noqa: F401 - before gRPC

if TYPE_CHECKING:
    from manager.access.security import Security
    from manager.api.cohort import AsyncCohort, Cohort
    from manager.api.outcome import Outcome, Progress, Reduced
    from manager.api.proxy import AsyncParticipantProxy, ParticipantProxy
    from manager.core.call import OutcomeKind
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
    from manager.reducing.reducers import Contribution, Reducer, RefusedError
    from manager.server import ParticipantManager, Server, create_participant_manager
    from protos.messages import from_scalars, instruction
    from protos.tensors import to_array, to_arrays

# Loaded when first used: a command's --help needs none of it, and a worker little.
_FROM = {
    "manager.core.call": ["OutcomeKind"],
    "manager.api.cohort": ["AsyncCohort", "Cohort"],
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
    "manager.api.outcome": ["Outcome", "Progress", "Reduced"],
    "manager.api.proxy": ["AsyncParticipantProxy", "ParticipantProxy"],
    "manager.server": ["ParticipantManager", "Server", "create_participant_manager"],
    "manager.reducing.reducers": ["Contribution", "Reducer", "RefusedError"],
    "manager.access.security": ["Security"],
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
