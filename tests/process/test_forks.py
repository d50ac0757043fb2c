"""In a process that was forked from one which uses gRPC nothing hangs or crashes: it is said what to do."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support import PATIENCE

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")

SCRIPT = """
import os, sys, traceback
from coordinator import Coordinator, MusterError, connect
from manager import create_participant_manager
from participant_sdk import Participant, client
from protos.stream_pb2 import ParticipantMessage


def take_part(address):
    with client.connection(address) as connection:
        connection.dispatch(ParticipantMessage())


def starts(address):
    with Coordinator(workers=1, listen="127.0.0.1:0", control="127.0.0.1:0", log_level="critical"):
        pass


def serves(address):
    create_participant_manager(listen="127.0.0.1:0")


def in_a_fork(what):
    child = os.fork()
    if child == 0:
        try:
            what(control if what is connect else address)
        except (RuntimeError, MusterError) as error:
            said = str(error)
            os._exit(0 if "forked" in said and "spawn" in said else 1)
        except BaseException:
            traceback.print_exc()
        os._exit(2)
    return os.waitpid(child, 0)[1]


running = Coordinator(workers=1, listen="127.0.0.1:0", control="127.0.0.1:0", log_level="critical")
with running:
    address, control = running.listen, running.control
    take_part(address)
    attempts = [take_part, starts, serves, connect, lambda _: Participant("a").run(address)]
    attempts.append(lambda _: running.get_participants(0))
    ends = [in_a_fork(attempt) for attempt in attempts]
    sys.exit(f"they ended with {ends}" if any(ends) else 0)
"""


def test_whatever_is_tried_there_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], stderr=subprocess.PIPE, text=True, timeout=3 * PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
