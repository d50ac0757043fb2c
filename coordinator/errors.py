"""What callers of the coordinator can catch besides manager/errors.py.

::

    MusterError
    ├── StartError
    │   └── WorkerBootError   a worker process could not start, so the coordinator didn't either
    └── CoordinatorGone       (also a ConnectionError)  the running coordinator can't be reached any more
"""

from __future__ import annotations

from manager.errors import MusterError, StartError


class WorkerBootError(StartError):
    """A worker process could not start. Its own error message is on stderr."""


class CoordinatorGone(MusterError, ConnectionError):
    """The coordinator that this process is attached to has stopped, or never was there.

    Calls that ran have no outcome. Attach again with ``coordinator.connect``.
    """
