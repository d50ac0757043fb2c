"""A client's token: what can be one, where it is read from, and how it travels with a call.

Where it may go, and whether it is good, others decide. No error here has the token in it.
"""

from __future__ import annotations

import os
import re
from typing import Final, TypeAlias

Token: TypeAlias = str | os.PathLike[str]
"""The token itself, or the path of a file that holds it."""

Metadata: TypeAlias = tuple[tuple[str, str], ...]

_TOKEN: Final = re.compile(r"[!-~]{1,4096}")
"""What gRPC sends unchanged, and servers take in. A private key or a list of tokens is nothing like this."""

_MUSTERS: Final = re.compile(r"(.*/)?muster_[A-Za-z0-9_-]{40,}")
"""A token of `coordinator tokens`, most likely given in the wrong place: it must not be shown."""


class TokenError(ValueError):
    """A token can't be read, or can't be one. The text says why, in one sentence."""


def bearer(token: Token | None) -> Metadata:
    """The metadata that a call carries a token in; none without one. A file is read each time.

    Raises TokenError if the file can't be read, or what is there can't be a token.
    """
    if token is None:
        return ()
    if isinstance(token, str):
        text, where = token, "what is given as the token"
    else:
        from pathlib import Path  # most clients begin without

        if _MUSTERS.fullmatch(os.fspath(token)):
            raise TokenError(
                "what is given as the name of a file that holds a token looks like a token itself"
            )
        where = f"what is in {os.fspath(token)}"
        try:
            text = Path(token).read_text(encoding="ascii", errors="replace").strip()
        except OSError as error:
            raise TokenError(
                f"can't read the token in {os.fspath(token)!r} ({error.strerror or error})"
            ) from None
    if not _TOKEN.fullmatch(text):
        raise TokenError(f"{where} is no token, which is one line of printable characters without spaces")
    return (("authorization", f"Bearer {text}"),)
