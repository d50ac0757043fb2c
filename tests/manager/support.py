"""What the tests of the manager's cores share."""

from __future__ import annotations

from collections.abc import Mapping

from manager.members import Member


def make_member(
    key: int,
    participant_id: str = "",
    *,
    where: Mapping[str, str] | None = None,
    worker: int = 0,
    accepts_cancel: bool = False,
) -> Member:
    """A member as a transport would make it. Its session has the number of its key."""
    return Member(
        key=key,
        participant_id=participant_id or f"participant-{key}",
        attributes=dict(where or {}),
        worker=worker,
        session=key,
        accepts_cancel=accepts_cancel,
    )
