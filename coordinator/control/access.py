"""How a script or a command reaches a coordinator: where it is, whom it trusts, and who it is.

Decides where tokens may go, and makes channels. What is in the files, and why TLS fails, protos/tls.py says;
what a token is, protos/bearer.py.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Self

import grpc
import grpc.aio

from coordinator.control.server import CONTROL_OPTIONS
from coordinator.control_address import ControlAddress, UnixAddress, is_local, parse, target
from coordinator.errors import CredentialsError
from protos.bearer import Metadata, Token, TokenError, bearer
from protos.forks import check_process
from protos.tls import SPEAKS_NO_TLS, TLS, WANTED, TLSError, diagnose

_ROOT = 0

_UNRESOLVED = re.compile("errors? resolving|DNS resolution failed|lookup failed", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Access:
    """``tls`` None: in plaintext. ``token`` None: without one. Files are read anew each time."""

    address: ControlAddress
    tls: TLS | None = None
    token: Token | None = field(default=None, repr=False)

    @classmethod
    def of(cls, address: str, tls: TLS | bool | None, token: Token | None) -> Self:
        """As scripts give them; ``tls`` True trusts whom the system trusts.

        Raises ValueError or TypeError, with a sentence, for what they can't be.
        """
        if not isinstance(tls, TLS | bool | None):
            raise TypeError(f'tls= takes a TLS, as in TLS(ca="ca.pem"), or a bool, not {type(tls).__name__}')
        if not isinstance(token, str | os.PathLike | None):
            raise TypeError(f"token= takes a str, or the Path of a file, not {type(token).__name__}")
        return cls(parse(address), TLS() if tls is True else tls or None, token)

    def __str__(self) -> str:
        return str(self.address)

    def channel(self) -> grpc.aio.Channel:
        """A channel for asyncio. Raises CredentialsError."""
        credentials = self._credentials()
        if credentials is None:
            return grpc.aio.insecure_channel(target(self.address), options=self._options)
        return grpc.aio.secure_channel(target(self.address), credentials, options=self._options)

    def blocking_channel(self) -> grpc.Channel:
        """One that blocks. Raises CredentialsError."""
        credentials = self._credentials()
        if credentials is None:
            return grpc.insecure_channel(target(self.address), options=self._options)
        return grpc.secure_channel(target(self.address), credentials, options=self._options)

    @property
    def _options(self) -> list[tuple[str, int]]:
        # gRPC would go through a proxy (http_proxy) to loopback, too, with a token in plaintext.
        return [*CONTROL_OPTIONS, ("grpc.enable_http_proxy", int(not is_local(self.address)))]

    def metadata(self) -> Metadata:
        """What each call carries. Raises CredentialsError if it must not, or isn't there."""
        if self.token is not None and self.tls is None and not is_local(self.address):
            raise CredentialsError(
                f"the token won't go to {self} in plaintext, where others could read it; connect with TLS "
                f"(tls=, or --ca or --tls)"
            )
        try:
            return bearer(self.token)
        except TokenError as error:
            raise CredentialsError(str(error)) from None

    async def diagnose(self) -> str | None:
        """Why a connection fails, if it is for TLS. Makes one to find out; takes a few seconds at most."""
        if isinstance(self.address, UnixAddress):
            return None
        found = await diagnose(self.address.host, self.address.port, self.tls)
        if found == SPEAKS_NO_TLS and is_local(self.address):
            return (
                "the server doesn't speak TLS, as no control address on loopback does; leave out tls=, or "
                "--ca and --tls"
            )
        if found == WANTED:
            return (
                "the server wants a client certificate, as no control address does; most likely that is "
                "where participants connect"
            )
        return found

    def unknown_name(self, details: str) -> str | None:
        """That the host's name isn't known, if that is what gRPC says in ``details``."""
        if isinstance(self.address, UnixAddress) or not _UNRESOLVED.search(details):
            return None
        return f"the name {self.address.host} isn't known here"

    def _credentials(self) -> grpc.ChannelCredentials | None:
        check_process()
        if isinstance(self.address, UnixAddress):
            self._check_owner(self.address)
        if self.tls is None:
            return None
        if isinstance(self.address, UnixAddress):
            raise CredentialsError(
                f"{self} is on this machine and speaks no TLS; leave out tls=, or --ca and --tls"
            )
        try:
            return self.tls.credentials()
        except TLSError as error:
            raise CredentialsError(str(error)) from None

    def _check_owner(self, address: UnixAddress) -> None:
        """Where everybody may make sockets, somebody may have been faster."""
        try:
            owner = address.path.stat().st_uid
        except OSError:
            return  # nobody is there, or can be reached
        if os.getuid() not in (owner, _ROOT) and owner != _ROOT:
            raise CredentialsError(
                f"{self} belongs to somebody else (user id {owner}); nothing was sent there"
            )
