"""What callers of the coordinator can catch besides manager/errors.py.

::

    MusterError
    ├── StartError
    │   └── WorkerBootError   a worker process could not start, so the coordinator didn't either
    ├── CoordinatorGone       (also a ConnectionError)  the running coordinator can't be reached any more
    └── CredentialsError      TLS or a token is not as it has to be; to try again doesn't help
"""

from __future__ import annotations

from manager.errors import MusterError, StartError


class WorkerBootError(StartError):
    """A worker process could not start. Its own error message is on stderr."""


class CoordinatorGone(MusterError, ConnectionError):
    """The coordinator that this process is attached to has stopped, or never was there.

    Calls that ran have no outcome. Attach again with ``coordinator.connect``.
    """


class CredentialsError(MusterError):
    """Files can't be used, the two ends don't trust one another, or the coordinator refuses the token.

    The text says which, and what to do. To attach again with the same doesn't help.
    """
