"""Whom a worker turned away, cut off or closed, counted by why: one counter for each limit and each rule.

The decisions are those of servicer.py, admission.py, verdicts.py and connections.py. The counters go to the
coordinator with each heartbeat, which keeps those of workers that have ended (transport.py).
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import TypeAlias


class Cause(StrEnum):
    """The options of ``coordinator start`` have their names, where there is one."""

    # Participants, told when to come back:
    MAX_PARTICIPANTS = "max_participants"
    MAX_PER_WORKER = "max_per_worker"
    MAX_PER_ADDRESS = "max_per_address"  # or cut off, above twice as many
    MAX_JOINS = "max_joins"
    OPEN_FILES = "open_files"  # as many streams as there are files for
    # Streams, ended with a status:
    CREDENTIALS = "credentials"
    PROTOCOL = "protocol"
    COMPRESSION = "compression"
    MAX_METADATA = "max_metadata"
    MAX_MESSAGE = "max_message"
    HELLO_TIMEOUT = "hello_timeout"
    SILENT = "silent"  # before that: it had to make room
    STALLED = "stalled"  # in the middle of a message
    STAYED = "stayed"  # when it was to go
    # Connections without a stream, closed without a word:
    CONNECTIONS_PER_ADDRESS = "connections_per_address"
    IDLE_TIMEOUT = "idle_timeout"
    HANDSHAKE_TIMEOUT = "handshake_timeout"  # or pings were not answered; an estimate (connections.py)
    MAX_CONNECTIONS = "max_connections"  # how often the worker was found full, not how many it closed


Refused: TypeAlias = Counter[str]
"""Its keys are causes, or what another version of Muster calls so."""
