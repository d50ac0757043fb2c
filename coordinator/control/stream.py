"""The control stream as an attached script has it: opened as soon as somebody answers, and read to its end.

Decides how long is tried, and which error it is that nobody answers or that the stream has ended. What is
said on it is client.py's business.
"""

from __future__ import annotations

import asyncio
import time

import grpc
import grpc.aio

from coordinator.control.access import Access
from coordinator.control.attachment import CONTROL_VERSION
from coordinator.errors import CoordinatorGone, CredentialsError
from manager.payloads.blobs import Sample, can_open
from protos import control_pb2
from protos.control_pb2_grpc import ControlStub
from protos.ending import Ending

STATUS_TIMEOUT = 5.0
"""Seconds that the coordinator gets to answer a question about its status."""

FOREVER = 1e8
"""Seconds, three years: what no timeout means to who has to wait for something."""

RETRY_INTERVAL = 0.2
"""Seconds between two attempts to attach to a coordinator that may still be on its way up."""


class ControlStream:
    """To one coordinator."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self.address = str(access)
        self._sample = Sample()

    async def open(self, timeout: float | None) -> control_pb2.ServerBatch:
        """Attaches; returns what the coordinator says first. See coordinator.connect for what it raises."""
        deadline = time.monotonic() + (FOREVER if timeout is None else min(timeout, FOREVER))
        while True:
            welcome = await self._attach(max(0.1, deadline - time.monotonic()))
            if isinstance(welcome, control_pb2.ServerBatch):
                return welcome
            await self._channel.close()
            code, why = welcome
            if code is grpc.StatusCode.UNAUTHENTICATED:
                raise CredentialsError(f"{self._refused(why)}; show a valid token: connect(..., token=)")
            if code is grpc.StatusCode.UNAVAILABLE and (diagnosis := await self._access.diagnose()):
                raise CredentialsError(f"can't attach to the coordinator at {self.address}: {diagnosis}")
            if code is not grpc.StatusCode.UNAVAILABLE:
                raise CoordinatorGone(f"the coordinator at {self.address} can't be attached to: {why}")
            if time.monotonic() + RETRY_INTERVAL > deadline:
                raise CoordinatorGone(
                    f"no coordinator answers at {self.address} ({why}); is `coordinator start` running?"
                )
            await asyncio.sleep(RETRY_INTERVAL)

    async def _attach(self, timeout: float) -> control_pb2.ServerBatch | tuple[grpc.StatusCode, str]:
        """Tries once; returns why it didn't work, if it didn't."""
        # A new channel each time: gRPC's own would wait ever longer between its attempts.
        self._metadata = self._access.metadata()
        self._channel = self._access.channel()
        self._stub = ControlStub(self._channel)
        self._stream = self._stub.Attach(metadata=self._metadata)
        self._ending = Ending(self._stream)
        try:
            async with asyncio.timeout(timeout):
                await self.write(
                    control_pb2.ClientBatch(version=CONTROL_VERSION, memory=self._sample.message())
                )
                welcome = await self._stream.read()
                if isinstance(welcome, control_pb2.ServerBatch):
                    await self.write(control_pb2.ClientBatch(shares_memory=can_open(welcome.memory)))
                    return welcome
        except TimeoutError:
            return grpc.StatusCode.UNAVAILABLE, "no answer in time"
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        return await self._why()

    async def write(self, batch: control_pb2.ClientBatch) -> None:
        await self._stream.write(batch)

    async def read(self) -> control_pb2.ServerBatch | None:
        """The next batch; None once the stream has ended."""
        try:
            batch = await self._stream.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return None
        return batch if isinstance(batch, control_pb2.ServerBatch) else None

    async def ended(self) -> CredentialsError | CoordinatorGone:
        """What a script is told when it has."""
        code, why = await self._why()
        if code is grpc.StatusCode.UNAUTHENTICATED:
            return CredentialsError(self._refused(why))
        return CoordinatorGone(
            f"the coordinator at {self.address} is gone ({why}); attach again with coordinator.connect"
        )

    def cancel(self) -> None:
        """Ends it."""
        self._stream.cancel()

    async def close(self) -> None:
        await self._channel.close()

    async def status(self) -> control_pb2.Status:
        """What there is and what goes on. Raises CoordinatorGone if no answer comes."""
        try:
            status: control_pb2.Status = await self._stub.GetStatus(
                control_pb2.StatusRequest(), timeout=STATUS_TIMEOUT, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise CoordinatorGone(
                f"the coordinator at {self.address} does not answer ({error.code().name.lower()})"
            ) from None
        return status

    def _refused(self, why: str) -> str:
        return f"the coordinator at {self.address} refuses this script: {why}"

    async def _why(self) -> tuple[grpc.StatusCode, str]:
        """How the stream ended; and in words."""
        code, details = await self._ending.wait()
        if code is grpc.StatusCode.UNAVAILABLE and "refused" in details:
            return code, "connection refused"
        if code is grpc.StatusCode.UNAVAILABLE and (unknown := self._access.unknown_name(details)):
            return code, unknown
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return code, "it is not a control address (participants connect there?)"
        if code is grpc.StatusCode.OK:
            return code, "it has closed the connection"
        return code, details or code.name.lower()
