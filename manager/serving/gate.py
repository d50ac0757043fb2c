"""Lets in who has the credentials that are asked for, before anything of a participant is kept.

A thin shell around identity.py, tokens.py and peer_certificate.py: a token is looked at in a call's metadata
before there is a handler for it, a certificate's name in the handler's context, which is where gRPC has it.
The servicer gets the identity as an argument. TLS itself refuses who has no certificate, or one of another
authority.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from manager.access.identity import Identity, UnauthenticatedError, agreed, bearer, certified
from manager.access.token_file import read_tokens
from manager.access.watched import Watched

if TYPE_CHECKING:
    from manager.serving.servicer import Servicer

    _Handler = grpc.RpcMethodHandler[Any, Any]
    _Context = grpc.aio.ServicerContext[bytes, bytes]

_NOT_VALID = "the token is not valid, or not any more"


class Gate(grpc.aio.ServerInterceptor):
    """In front of one servicer."""

    def __init__(self, servicer: Servicer, tokens: str | None, *, certificates: bool) -> None:
        """``tokens`` is a file of them; ``certificates``: participants have shown theirs.

        Raises TokensError if the file can't be read.
        """
        self._servicer = servicer
        self._check: Callable[[bytes, datetime], None] | None = None
        if certificates:
            from manager.access.peer_certificate import check

            self._check = check
        self._tokens = None if tokens is None else Watched("tokens", [tokens], partial(read_tokens, tokens))

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        try:
            shown = self._show(details)
        except UnauthenticatedError as error:
            return _handler(partial(self._refuse, text=str(error)))
        if await continuation(details) is None:
            return None  # there is no such method
        return _handler(partial(self._enter, shown))

    def _show(self, details: grpc.HandlerCallDetails) -> Identity | None:
        """Whose token it is."""
        if self._tokens is None:
            return None
        found = self._tokens.value.find(bearer(details.invocation_metadata))
        if found is None:
            raise UnauthenticatedError(_NOT_VALID)
        return found

    async def _enter(self, token: Identity | None, requests: AsyncIterator[bytes], context: _Context) -> None:
        try:
            identity = agreed(token, self._certified(context))
            if identity is not None and not self._holds(identity):  # revoked between the two
                raise UnauthenticatedError(_NOT_VALID)
        except UnauthenticatedError as error:
            await self._refuse(requests, context, text=str(error))
            return
        await self._servicer.connect(requests, context, identity)

    async def _refuse(self, _requests: AsyncIterator[bytes], context: _Context, *, text: str) -> None:
        await self._servicer.refusals.stranger(context, text)

    def _certified(self, context: _Context) -> str | None:
        """Whose certificate it is."""
        if self._check is None:
            return None
        properties = context.auth_context()
        name = certified(properties)
        self._check(next(iter(properties.get("x509_pem_cert", ())), b""), datetime.now(UTC))
        return name

    def _holds(self, identity: Identity) -> bool:
        return self._tokens is None or self._tokens.value.holds(identity)

    @property
    def trouble(self) -> str:
        """Why tokens stay as they were; empty if they don't."""
        return "" if self._tokens is None else self._tokens.trouble

    def look(self) -> bool:
        """Whether there are other tokens now. Does a little input and output."""
        return self._tokens is not None and self._tokens.look()

    def clear_out(self) -> None:
        """Ends the streams of those whose token has been revoked."""
        self._servicer.revoke(self._holds)


def _handler(serve: Callable[..., Awaitable[None]]) -> _Handler:
    return grpc.stream_stream_rpc_method_handler(serve)
