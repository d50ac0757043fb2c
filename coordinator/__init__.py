"""One pool of participants over many worker processes.

``Coordinator`` runs the workers from this process; ``connect`` attaches to a running ``coordinator start``;
``aio`` is the asyncio twin of both. Files marked ★ are sans-IO: they decide, and do no input or output.

================  =============================================================================
**for callers**
coordinator.py    the blocking interface
aio.py            the asyncio interface
settings.py       what can be set
errors.py         what can be caught, besides manager/errors.py
access.py         how a script or a command reaches a coordinator
cli.py            ``coordinator start``
remote.py         the commands that speak to a running coordinator
tokens_cli.py     ``coordinator tokens``
token_file.py     the file that it changes
certs.py          ``coordinator certs``: which certificates and keys there are
authority.py      what is in a certificate
view.py           what is shown of it: log lines, JSON
terminal.py       tables, and a live display
**deciding**
downlink.py ★     the coordinator's side of the link to one worker
restarts.py ★     what happens when a worker process ends
balance.py ★      how many participants are moved, so that all workers have about the same
patience.py ★     how long is waited for workers to end
**doing**
running.py        a coordinator brought up and down
run_dir.py        what outlives a coordinator that is killed
private.py        directories and files that are this user's alone
workers.py        the links to all workers
draining.py       which of them are told to drain, and when
transport.py      what the dispatcher wants, on its way to them
router.py         the socket that they come in by
supervisor.py     the worker processes, kept running
slot.py           what is known of one of them
rolling.py        workers that live, restarted one after the other
process.py        one of them
orders.py         what the coordinator tells a worker, batched
control.py        the control server
control_address.py  where it is
control_gate.py   who may use it
unix_socket.py    a place for its Unix socket
attachment.py     one attached script
client.py         the other end of it, in an attached script
pending.py        what a script waits for
writer.py         batches for the control stream
passing.py        how a payload crosses it: as bytes or as a descriptor
================  =============================================================================

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
