"""Decides what a file of tokens says, and whose a token is. Sans-IO.

A line per token, ``<name> <SHA-256 of the token in hexadecimal>``, between comments (``#``) and empty lines.
A name may have several lines: a new token is issued before the old one is revoked. The file holds no token,
so whoever reads it can't pose as anybody. SHA-256 is enough for that: a token is 256 random bits, which
nobody finds by trying, unlike a password. Its prefix lets scanners find tokens that have leaked.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from manager.access.identity import Identity
from manager.core.members import ANONYMOUS, recognisable

PREFIX: Final = "muster_"

RANDOM_BYTES: Final = 32

MAX_NAME: Final = 200
"""Characters of a name."""

_BEGINNING: Final = 2
"""Bytes of a digest by which candidates are looked up, rather than compared with all."""

_HEX: Final = re.compile(r"[0-9a-fA-F]{64}")


class TokensError(ValueError):
    """A file of tokens that can't be read, or a name that can't be one. The text says why."""


class Tokens:
    """Whose each token is, by its digest. Doesn't change."""

    __slots__ = ("_candidates", "_names")

    def __init__(self, names: Mapping[bytes, str]) -> None:
        self._names = names
        self._candidates: dict[bytes, list[bytes]] = {}  # digests, by how they begin
        for each in names:
            self._candidates.setdefault(each[:_BEGINNING], []).append(each)

    def find(self, token: str) -> Identity | None:
        """Whose the token is; None if nobody's. How long that takes says nothing of the digests but, at
        most, how they begin."""
        shown, found = digest(token), None
        for each in self._candidates.get(shown[:_BEGINNING], ()):
            if hmac.compare_digest(each, shown):
                found = each
        return None if found is None else Identity(self._names[found], shown)

    def holds(self, identity: Identity) -> bool:
        """Whether the token of this identity is still valid."""
        if identity.token is None:
            return True
        return self._names.get(identity.token) == identity.name

    def count(self) -> Counter[str]:
        """How many tokens each name has."""
        return Counter(self._names.values())

    def __len__(self) -> int:
        return len(self._names)


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def make_token(randomness: bytes) -> str:
    """A new token from RANDOM_BYTES bytes of a secure source."""
    return PREFIX + base64.urlsafe_b64encode(randomness).rstrip(b"=").decode()


def check_name(name: str) -> None:
    """Raises TokensError if nobody can have this name in a file of tokens."""
    if not name or len(name) > MAX_NAME:
        raise TokensError(f"a name must have from 1 to {MAX_NAME} characters")
    if not name.isprintable() or " " in name or name.startswith("#"):
        raise TokensError("a name must be printable, without spaces, and must not begin with #")
    if not recognisable(name):
        raise TokensError(f"a name must not begin with {ANONYMOUS!r}: such names are made up by managers")


def parse(text: str) -> Tokens:
    """Reads a file of tokens. Raises TokensError, which names the line but shows nothing of it."""
    names: dict[bytes, str] = {}
    for number, name, found in _entries(text):
        if names.setdefault(found, name) != name:
            raise TokensError(f"line {number}: another name has the same token")
    return Tokens(names)


def added(text: str, name: str, token: str) -> str:
    """The same file with one more token for a name. Raises TokensError."""
    check_name(name)
    if text and not text.endswith("\n"):
        text += "\n"
    return f"{text}{name} {digest(token).hex()}\n"


def removed(text: str, name: str, *, keep_last: bool) -> tuple[str, int]:
    """The same file without the tokens of a name, and how many they were.

    ``keep_last``: without all but the one that was issued last. Raises TokensError.
    """
    numbers = [number for number, each, _ in _entries(text) if each == name]
    gone = set(numbers[:-1] if keep_last else numbers)
    lines = text.splitlines(keepends=True)
    return "".join(line for number, line in enumerate(lines, 1) if number not in gone), len(gone)


def _entries(text: str) -> Iterator[tuple[int, str, bytes]]:
    """Line number, name and digest of each token."""
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        if len(fields) != 2 or not _HEX.fullmatch(fields[1]):
            raise TokensError(
                f"line {number}: write a name and the SHA-256 of its token, in 64 hexadecimal digits"
            )
        try:
            check_name(fields[0])
        except TokensError as error:
            raise TokensError(f"line {number}: {error}") from None
        yield number, fields[0], bytes.fromhex(fields[1])
