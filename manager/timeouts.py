"""How long each step of a worker's end may take, in seconds, once the grace period of a drain is over.

The coordinator waits for the sum before it kills one (coordinator/workers/supervisor.py), so it is told here
and not where the steps are taken.
"""

CLOSE_TIMEOUT = 1.0
"""For participants who have been told to reconnect, to close their streams (endpoint.py)."""

FOLDING_TIMEOUT = 5.0
"""For answers that are being folded in, when all participants are gone (folding.py)."""

GOODBYE_TIMEOUT = 1.0
"""For the coordinator, to acknowledge the last reports (worker.py)."""

OVERTIME = CLOSE_TIMEOUT + FOLDING_TIMEOUT + GOODBYE_TIMEOUT
"""For a drain, beyond its grace period."""

EXIT_TIMEOUT = 2.0
"""For the process, to exit once it has said goodbye; then it says where it hangs (cli.py)."""
