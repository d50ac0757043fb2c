"""What the blocking and the asyncio Participant have in common: who it is, and its handlers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from participant_sdk.credentials import Credentials
from participant_sdk.handlers import H, Handlers
from participant_sdk.hello import check_attributes, check_id, hello
from participant_sdk.logs import log_of
from participant_sdk.runner import Runner
from protos.bearer import Token
from protos.tls import TLS


class BaseParticipant:
    """Handlers by instruction name, and a connection that is made again whenever it is lost."""

    def __init__(
        self,
        participant_id: str = "",
        attributes: Mapping[str, str] | None = None,
        *,
        tls: TLS | bool | None = None,
        token: Token | None = None,
    ) -> None:
        self.participant_id = check_id(participant_id)
        self.attributes = check_attributes(attributes)
        self._credentials = Credentials.of(tls, token)
        self._handlers = Handlers()
        self._runner: Runner | None = None
        self._stopping = False

    def on(self, name: str | None = None) -> Callable[[H], H]:
        """Makes the decorated function the handler of instructions of this name; without a name, of all that
        have no handler of their own.

        The handler is given an Instruction. It returns a Result, a dict of arrays, a
        stream_pb2.ParticipantMessage, or None for an empty result. What it raises is logged here and goes to
        the caller as a failure. A handler is never called while another one works. A plain function runs in
        a thread of this participant, a coroutine function in the event loop; the latter is cancelled when its
        answer is wanted no more.

        Raises ValueError if the name has a handler already.
        """
        if name is not None and not isinstance(name, str):
            raise TypeError('on() takes the name of an instruction: write @participant.on("train")')

        def register(handler: H) -> H:
            self._handlers.add(name, handler)
            return handler

        return register

    def stop(self) -> None:
        """Makes run() leave the coordinator and return, as soon as a handler at work has returned.

        An answer that isn't on its way yet is not sent any more; the handler's ``cancelled`` is set. May be
        called in any thread and in a signal handler. Called before run(), it makes that return at once.
        """
        self._stopping = True
        if self._runner is not None:
            self._runner.stop()

    async def _run(
        self, address: str, attempts: int | None, tls: TLS | bool | None, token: Token | None
    ) -> None:
        if self._runner is not None:
            raise RuntimeError("this participant is running already; make a second one")
        credentials = self._credentials.or_rather(tls, token)
        credentials.check(address)
        greeting = hello(self.participant_id, self.attributes, accepts_cancel=True)
        self._runner = Runner(address, credentials, greeting, self._handlers, attempts=attempts)
        if not self._handlers:
            text = 'there is no handler: every instruction will fail; write @participant.on("train")'
            log_of(self.participant_id, logging.WARNING, text)
        try:
            if not self._stopping:
                await self._runner.run()
        finally:
            self._runner = None
            self._stopping = False
