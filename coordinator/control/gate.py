"""Lets in scripts and commands that show a token, before anything of a call is read.

Tokens are those of manager/access/tokens.py, in a file of their own; a script whose token is revoked is sent
away. Where tokens are needed settings.py decides, and whether they may travel access.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio

from manager.access.identity import Identity, UnauthenticatedError, bearer
from manager.access.token_file import read_tokens
from manager.access.watched import Watched
from manager.core.members import readable
from manager.logs import Sparingly

log = logging.getLogger("muster.control")

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_NOT_VALID = "the token is not valid here, or not any more"


class ControlGate(grpc.aio.ServerInterceptor):
    """In front of the control API, whichever the method."""

    def __init__(self, tokens: Path) -> None:
        """``tokens`` is a file. Raises ValueError, with a sentence, if it can't be read."""
        self._tokens = Watched("the tokens of scripts", [str(tokens)], partial(read_tokens, str(tokens)))
        self._inside: dict[asyncio.Task[Any], tuple[Identity, Context]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._sparingly = Sparingly(log)
        self.refused = 0
        """Calls that were refused or cut off, so far."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(details)
        if handler is None:
            return None  # there is no such method
        try:
            identity = self._tokens.value.find(bearer(details.invocation_metadata))
            if identity is None:
                raise UnauthenticatedError(_NOT_VALID)
        except UnauthenticatedError as error:
            # As a stream, whatever it is: so nothing is read of what the caller sends.
            return grpc.stream_stream_rpc_method_handler(partial(self._refuse, text=str(error)))
        if handler.stream_stream is None:
            return handler
        return grpc.stream_stream_rpc_method_handler(
            partial(self._attend, identity, handler.stream_stream),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    async def _refuse(self, _requests: AsyncIterator[bytes], context: Context, *, text: str) -> None:
        self._count(context, text)
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, text)

    async def _attend(
        self, identity: Identity, serve: Any, requests: AsyncIterator[Any], context: Context
    ) -> None:
        """A script's session, which may outlive its token."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - gRPC runs each handler in a task
        self._inside[task] = identity, context
        self.clear_out()  # it may have been revoked between the two
        try:
            await serve(requests, context)
        finally:
            self._inside.pop(task, None)

    @property
    def trouble(self) -> str:
        """Why tokens stay as they were; empty if they don't."""
        return self._tokens.trouble

    def look(self) -> bool:
        """Whether there are other tokens now. Does a little input and output."""
        return self._tokens.look()

    def clear_out(self) -> None:
        """Sends those away whose token has been revoked."""
        for task, (identity, context) in list(self._inside.items()):
            if not self._tokens.value.holds(identity):
                del self._inside[task]
                self._count(context, f"the token of {identity.name} has been revoked")
                leaving = asyncio.ensure_future(_send_away(task, context))
                self._leaving.add(leaving)
                leaving.add_done_callback(self._leaving.discard)

    def _count(self, context: Context, text: str) -> None:
        self.refused += 1
        peer = readable(context.peer())
        self._sparingly.warning("refused", "refused %s at the control address: %s", peer, text)


async def _send_away(task: asyncio.Task[Any], context: Context) -> None:
    with contextlib.suppress(grpc.aio.AbortError, grpc.aio.UsageError):  # it may just have ended by itself
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, _NOT_VALID)
    task.cancel()
