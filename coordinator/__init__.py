"""One pool of participants over many worker processes.

``Coordinator`` runs the workers from this process; ``connect`` attaches to a running ``coordinator start``;
``aio`` is the asyncio twin of both. Files marked ★ are sans-IO: they decide, and do no input or output.

================  =============================================================================
errors.py         what can be caught, besides manager/errors.py
control_address.py  where training scripts connect
settings.py       what can be set
private.py        directories and files that are this user's alone
unix_socket.py    a place for a Unix socket
workers/          the worker processes, and the links to them
control/          how training scripts reach a coordinator: both ends of the control API
running.py        a coordinator brought up and down
coordinator.py    the blocking interface
aio.py            the asyncio interface
commands/         the ``coordinator`` command
================  =============================================================================

Each imports only what stands above it.

Who gets which participants, and how each call ends, is decided in manager/core (pool.py, calls.py),
which the single-process mode shares.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import protos  # noqa: F401 - before gRPC

if TYPE_CHECKING:
    from coordinator import aio
    from coordinator.coordinator import Connection, Coordinator, connect
    from coordinator.errors import CoordinatorGone, CredentialsError, WorkerBootError
    from coordinator.settings import Settings
    from manager.access.security import Security
    from manager.api.cohort import Cohort
    from manager.api.outcome import Outcome, Progress, Reduced
    from manager.api.proxy import ParticipantProxy
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
    from protos.messages import from_scalars, instruction
    from protos.tensors import to_array, to_arrays
    from protos.tls import TLS

# Loaded when first used: a command's --help needs none of it, and a worker little.
_FROM = {
    "coordinator.coordinator": ["Connection", "Coordinator", "connect"],
    "coordinator.errors": ["CoordinatorGone", "CredentialsError", "WorkerBootError"],
    "coordinator.settings": ["Settings"],
    "manager.api.cohort": ["Cohort"],
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
    "manager.api.proxy": ["ParticipantProxy"],
    "manager.reducing.reducers": ["Contribution", "Reducer", "RefusedError"],
    "manager.access.security": ["Security"],
    "protos.messages": ["from_scalars", "instruction"],
    "protos.tensors": ["to_array", "to_arrays"],
    "protos.tls": ["TLS"],
}
_MODULE_OF = {name: module for module, names in _FROM.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "aio":
        return import_module("coordinator.aio")
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value


__all__ = [
    "TLS",
    "AddressInUse",
    "CallCancelled",
    "CallError",
    "CallTimeout",
    "Closed",
    "Cohort",
    "Connection",
    "Contribution",
    "Coordinator",
    "CoordinatorGone",
    "CredentialsError",
    "MusterError",
    "NotEnoughParticipants",
    "Outcome",
    "ParticipantFailed",
    "ParticipantLost",
    "ParticipantProxy",
    "Progress",
    "Reduced",
    "Reducer",
    "ReductionError",
    "RefusedError",
    "Security",
    "Settings",
    "StartError",
    "WorkerBootError",
    "aio",
    "connect",
    "from_scalars",
    "instruction",
    "to_array",
    "to_arrays",
]
