"""Reads a file of tokens."""

from __future__ import annotations

from manager.access.tokens import Tokens, TokensError, parse
from manager.access.watched import read_bytes


def read_tokens(file: str) -> Tokens:
    """Raises TokensError."""
    try:
        return parse(read_bytes(file).decode())
    except UnicodeDecodeError:
        raise TokensError(f"{file} is no file of tokens: it isn't UTF-8") from None
    except TokensError as error:
        raise TokensError(f"{file} is no file of tokens: {error}") from None
