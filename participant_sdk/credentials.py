"""What a participant shows of itself, and whom it trusts: TLS and a token, read anew for each connection.

Decides where a token may go: in plaintext it doesn't leave this machine. How it travels, protos/bearer.py
says; which certificates are used, and why TLS fails, protos/tls.py. No error and no repr has the token in it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Self

import grpc

from participant_sdk.address import is_local
from participant_sdk.errors import CredentialsError
from protos.bearer import Metadata, Token, TokenError, bearer
from protos.tls import TLS, TLSError


@dataclass(frozen=True, slots=True)
class Credentials:
    """``tls`` None: in plaintext. ``token`` None: without one."""

    tls: TLS | None = None
    token: Token | None = field(default=None, repr=False)

    @classmethod
    def of(cls, tls: TLS | bool | None, token: Token | None) -> Self:
        """As users give them; ``tls`` True is a TLS that trusts whom the system trusts.

        Raises TypeError if they are something else.
        """
        if not isinstance(tls, TLS | bool | None):
            raise TypeError(
                f'tls= takes a TLS, as in tls=TLS(ca="ca.pem"), or a bool, not {type(tls).__name__}'
            )
        if not isinstance(token, str | os.PathLike | None):
            raise TypeError(f"token= takes a str, or the Path of a file, not {type(token).__name__}")
        return cls(TLS() if tls is True else tls or None, token)

    def or_rather(self, tls: TLS | bool | None, token: Token | None) -> Credentials:
        """The same with others where they are given."""
        return Credentials.of(self.tls if tls is None else tls, self.token if token is None else token)

    def check(self, address: str) -> None:
        """Raises CredentialsError if they can't be used for a connection to ``address``."""
        self.for_channel()
        self.metadata(address)

    def for_channel(self) -> grpc.ChannelCredentials | None:
        """What a channel is made with. Raises CredentialsError."""
        try:
            return None if self.tls is None else self.tls.credentials()
        except TLSError as error:
            raise CredentialsError(str(error)) from None

    def metadata(self, address: str) -> Metadata:
        """What a call to ``address`` carries. Raises CredentialsError if it must not, or isn't there."""
        if self.token is not None and self.tls is None and not is_local(address):
            raise CredentialsError(
                f"the token won't go to {address} in plaintext, where others could read it",
                "connect with TLS (tls=, or --ca or --tls)",
            )
        try:
            return bearer(self.token)
        except TokenError as error:
            raise CredentialsError(str(error)) from None

    def renewed(self, shown: Metadata) -> bool:
        """Whether the token is in a file, which holds another one by now than was ``shown``."""
        try:
            return isinstance(self.token, os.PathLike) and bearer(self.token) != shown
        except TokenError:
            return False
