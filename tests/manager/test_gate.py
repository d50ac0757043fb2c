"""Who is let in, and what a stranger costs: nothing that stays."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

from manager.access.identity import Identity
from manager.access.tokens import added, make_token
from manager.serving.gate import Gate
from manager.serving.refusals import HEAR_OUT_TIME, MOST_HEARD_OUT
from manager.serving.refused import Cause
from tests.manager.support import LoopClock, settled
from tests.manager.test_peer_certificate import certificate
from tests.manager.test_servicer import Context, Served, on_a_loop

A, B = make_token(b"a" * 32), make_token(b"b" * 32)
ABSENT = "a token is needed (--token-file, or token=), in the call's metadata: authorization: Bearer <token>"
INVALID = "the token is not valid, or not any more"


class Peer(Context):
    """With properties of its connection."""

    def __init__(self, properties: Mapping[str, list[bytes]]) -> None:
        super().__init__()
        self._properties = properties

    def auth_context(self) -> Mapping[str, list[bytes]]:
        return self._properties


class Details:
    def __init__(self, method: str, metadata: list[tuple[str, str]]) -> None:
        self.method = method
        self.invocation_metadata = metadata


class Guarded:
    """A servicer behind a gate."""

    def __init__(self, file: Path | None, *, certificates: bool = False) -> None:
        self.served = Served()
        self.servicer = self.served.servicer
        self.gate = Gate(self.servicer, None if file is None else str(file), certificates=certificates)
        self._handler = self.servicer.handler()
        self._tasks: list[asyncio.Task[None]] = []

    async def comes(
        self, *metadata: tuple[str, str], name: str | None = None, says_something: bool = True
    ) -> Peer:
        """A stream begins; ``name`` is that of its certificate."""

        async def find(details: Any) -> Any:
            return self._handler.service(details)

        details: Any = Details("/muster.stream.v1.ParticipantManager/Connect", list(metadata))
        handler = await self.gate.intercept_service(find, details)
        assert handler is not None
        assert handler.stream_stream is not None
        properties = {}
        if name is not None:
            pem = certificate((name,))
            properties = {"x509_common_name": [name.partition("\0")[0].encode()], "x509_pem_cert": [pem]}
        peer = Peer(properties)
        if says_something:
            peer.incoming.put_nowait(b"")
        serve: Any = handler.stream_stream
        self._tasks.append(asyncio.ensure_future(serve(None, peer)))
        await settled()
        return peer

    @property
    def identities(self) -> list[Identity | None]:
        return [stream.identity for stream in self.servicer._open]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(added(added("", "a", A), "b", B))
    return file


def rewrite(file: Path, text: str) -> None:
    file.write_text(text)


def shown(token: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {token}")


@on_a_loop
async def test_who_has_a_token_is_let_in_by_its_name(file: Path) -> None:
    guarded = Guarded(file)
    await guarded.comes(("x", "y"), shown(A))
    (identity,) = guarded.identities
    assert identity is not None
    assert identity.name == "a"
    assert not guarded.servicer.refused
    await guarded.close()


@on_a_loop
async def test_strangers_are_refused_counted_and_forgotten(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guarded = Guarded(file)
    secret = make_token(b"c" * 32)
    silent = await guarded.comes(says_something=False)  # it is given a moment for its first message
    assert silent.status == (grpc.StatusCode.OK, "")
    for metadata, text in [
        ([], ABSENT),
        ([shown(secret)], INVALID),
        ([shown(A.upper())], INVALID),
        ([shown(A + " ")], None),  # spaces around it are nothing
        ([shown(A), shown(B)], "exactly one token is needed, in the call's metadata"),
    ]:
        peer = await guarded.comes(*metadata)
        if text is not None:
            assert peer.status == (grpc.StatusCode.UNAUTHENTICATED, text)
    assert guarded.servicer.refused == {Cause.CREDENTIALS: 5}
    assert len(guarded.identities) == 1
    assert "ended the stream of a participant at 127.0.0.1:1: " + ABSENT in caplog.text
    assert "muster_" not in caplog.text
    assert len(caplog.records) == 1, "the others are summed up"
    await guarded.close()


@on_a_loop
async def test_those_who_say_nothing_are_soon_refused_and_few_of_them_are_waited_for(
    file: Path,
) -> None:
    clock = LoopClock()
    guarded = Guarded(file)
    peers = [await guarded.comes(says_something=False) for _ in range(MOST_HEARD_OUT + 5)]
    refused = (grpc.StatusCode.UNAUTHENTICATED, ABSENT)
    assert [peer.status == refused for peer in peers] == [False] * MOST_HEARD_OUT + [True] * 5
    await clock.passes(HEAR_OUT_TIME + 0.1)
    assert all(peer.status == refused for peer in peers)
    again = await guarded.comes(says_something=False)
    assert again.status == (grpc.StatusCode.OK, ""), "there is room to wait for others"
    await guarded.close()


@on_a_loop
async def test_a_method_that_is_not_there_is_not_there_for_those_who_may_ask(file: Path) -> None:
    gate = Guarded(file).gate

    async def find(_details: Any) -> None:
        return None

    for metadata, there in [([shown(A)], False), ([], True)]:
        details: Any = Details("/nowhere", metadata)
        assert (await gate.intercept_service(find, details) is not None) is there


@on_a_loop
async def test_a_certificate_gives_the_name() -> None:
    guarded = Guarded(None, certificates=True)
    await guarded.comes(name="a")
    assert guarded.identities == [Identity("a")]
    nameless = await guarded.comes()
    assert nameless.status == (
        grpc.StatusCode.UNAUTHENTICATED,
        "the certificate has neither a common name nor an alternative name",
    )
    assert guarded.servicer.refused == {Cause.CREDENTIALS: 1}
    await guarded.close()


@on_a_loop
async def test_with_both_the_names_must_be_the_same(file: Path) -> None:
    guarded = Guarded(file, certificates=True)
    await guarded.comes(shown(A), name="a")
    assert len(guarded.identities) == 1
    thief = await guarded.comes(shown(B), name="a")
    assert thief.status == (
        grpc.StatusCode.UNAUTHENTICATED,
        "the token is that of b and the certificate that of a; both must be the same participant's",
    )
    without = await guarded.comes(name="a")
    assert without.status == (grpc.StatusCode.UNAUTHENTICATED, ABSENT)
    await guarded.close()


@on_a_loop
async def test_a_change_of_the_file_ends_who_is_not_in_it_any_more_and_lets_in_who_is(file: Path) -> None:
    guarded = Guarded(file)
    first, second = await guarded.comes(shown(A)), await guarded.comes(shown(B))
    new = make_token(b"c" * 32)
    rewrite(file, added(added("# without b\n", "a", A), "c", new))
    assert [guarded.gate.look() for _ in range(3)] == [False, True, False]
    guarded.gate.clear_out()
    await settled()
    assert second.status == (
        grpc.StatusCode.UNAUTHENTICATED,
        "the token of this participant has been revoked",
    )
    assert first.status == (grpc.StatusCode.OK, "")
    assert (await guarded.comes(shown(B))).status == (grpc.StatusCode.UNAUTHENTICATED, INVALID)
    await guarded.comes(shown(new))
    assert {identity.name for identity in guarded.identities if identity is not None} == {"a", "c"}
    await guarded.close()


@on_a_loop
async def test_who_is_revoked_on_the_threshold_does_not_get_in(file: Path) -> None:
    """Between the look at the token and the stream there is a moment in which the file may change."""
    guarded = Guarded(file)
    peer = Peer({})
    peer.incoming.put_nowait(b"")
    identity = guarded.gate._show(Details("", [shown(A)]))  # type: ignore[arg-type]
    rewrite(file, "")
    guarded.gate.look()
    assert guarded.gate.look()
    guarded.gate.clear_out()
    with pytest.raises(grpc.aio.AbortError):
        await guarded.gate._enter(identity, None, peer)  # type: ignore[arg-type]
    assert peer.status == (grpc.StatusCode.UNAUTHENTICATED, INVALID)
    assert not guarded.identities
