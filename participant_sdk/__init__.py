"""Takes part in federated learning: what runs on the device. Needs grpcio, protobuf and NumPy alone.

===================  ========================================================================
participant.py       Participant: handlers by instruction name, reconnecting (blocking)
client.py            connection: a stream as two functions, consume and dispatch (blocking)
aio.py               both of them in asyncio
instruction.py       what a handler is given, and what it may return
errors.py            the tree of errors
cli.py, app.py       the command ``participant`` (needs click)
===================  ========================================================================

Behind them, deciding without I/O:

===================  ========================================================================
lifecycle.py         what a participant does next, over all of its streams
handlers.py          the one answer to an instruction
backoff.py           how long to wait before the next attempt
status.py            which gRPC status is which error
address.py           what an address looks like, and where it leads
hello.py             what the first message says
===================  ========================================================================

and doing as they say:

===================  ========================================================================
base.py, runner.py   a participant in an event loop
work.py              where a handler runs
connection.py        consume and dispatch, in asyncio
stream.py            whole messages over a gRPC call
channel.py           the TCP connection, in plaintext or with TLS
credentials.py       certificates and tokens, read anew for each connection
background.py        the event loop behind the blocking calls
logs.py              what is logged of a participant, and how the command shows it
signals.py           SIGINT and SIGTERM as a wish to stop
===================  ========================================================================
"""

import protos  # noqa: F401 - before gRPC
from participant_sdk import aio, client
from participant_sdk.errors import (
    AddressError,
    ConnectionClosed,
    ConnectionLost,
    CredentialsError,
    ParticipantError,
    ProtocolError,
    Reconnect,
    Rejected,
)
from participant_sdk.instruction import Instruction, Result
from participant_sdk.participant import Participant
from protos.messages import ScalarError
from protos.tensors import TensorError
from protos.tls import TLS

__all__ = [
    "TLS",
    "AddressError",
    "ConnectionClosed",
    "ConnectionLost",
    "CredentialsError",
    "Instruction",
    "Participant",
    "ParticipantError",
    "ProtocolError",
    "Reconnect",
    "Rejected",
    "Result",
    "ScalarError",
    "TensorError",
    "aio",
    "client",
]
