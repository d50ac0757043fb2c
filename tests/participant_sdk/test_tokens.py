"""Tokens: who is let in with one, where it is sent, and that it shows nowhere."""

from __future__ import annotations

import asyncio
import logging
import pickle
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from participant_sdk import (
    TLS,
    ConnectionLost,
    CredentialsError,
    Participant,
    ParticipantError,
    Rejected,
    Result,
    aio,
    client,
)
from participant_sdk.credentials import Credentials
from participant_sdk.participant import run_all
from protos import stream_pb2
from tests.certificates import Authority, server_credentials
from tests.participant_sdk.support import Make, Peer, Runs, ScriptedCoordinator, reconnect

EMPTY = stream_pb2.ParticipantMessage()
TOKEN = "muster_c2VjcmV0LW9mLWVkZ2UtNw"  # noqa: S105
UNKNOWN = "the token is missing, unknown or revoked"


class Doorkeeper(grpc.aio.ServerInterceptor):
    """Lets those in who have one of the tokens."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = set(tokens)
        self.shown: list[str | None] = []

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        shown = dict(details.invocation_metadata or ()).get("authorization")
        self.shown.append(None if shown is None else str(shown))
        if shown is not None and str(shown).removeprefix("Bearer ") in self.tokens:
            return await continuation(details)

        async def refuse(_: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, UNKNOWN)

        handler: Any = refuse
        return grpc.stream_stream_rpc_method_handler(handler)


def guarded(*scripts: Any, tokens: tuple[str, ...] = (TOKEN,), **options: Any) -> ScriptedCoordinator:
    return ScriptedCoordinator(*scripts, interceptors=[Doorkeeper(*tokens)], **options)


@pytest.fixture(params=["text", "file"])
def token(request: pytest.FixtureRequest, tmp_path: Path) -> str | Path:
    if request.param == "text":
        return TOKEN
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    return file


def stopping(participant: Any) -> Any:
    async def script(peer: Peer) -> None:
        await peer.receive()
        participant.stop()
        await peer.expect_leave()

    return script


def test_a_participant_with_a_token_is_let_in(make: Make, run: Runs, token: str | Path) -> None:
    first, second = make(), make(token=token)
    with guarded(stopping(first), stopping(second)) as coordinator:
        run(first, coordinator.address, token=token)
        run(second, coordinator.address)


def test_a_connection_with_a_token_is_let_in(token: str | Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.expect_leave()

    with guarded(script, script) as coordinator:
        with client.connection(coordinator.address, token=token) as (_, dispatch):
            dispatch(EMPTY)

        async def scenario() -> None:
            async with aio.connection(coordinator.address, token=token) as (_, dispatch):
                await dispatch(EMPTY)

        asyncio.run(scenario())


def test_participants_of_one_process_with_tokens_of_their_own() -> None:
    async def script(peer: Peer) -> None:
        number = (await peer.receive()).hello.participant_id
        assert peer.metadata["authorization"] == f"Bearer token-{number}"
        participants[int(number)].stop()
        await peer.expect_leave()

    participants = [Participant(number, token=f"token-{number}") for number in ("0", "1")]
    with guarded(script, script, tokens=("token-0", "token-1")) as coordinator:
        assert run_all(participants, coordinator.address) == [None, None]


@pytest.mark.parametrize("shown", [None, "muster_of-somebody-else"], ids=["none", "another"])
def test_who_has_no_valid_token_is_refused_for_good(make: Make, run: Runs, shown: str | None) -> None:
    with guarded() as coordinator, pytest.raises(Rejected) as caught:
        run(make(), coordinator.address, token=shown)
    assert str(caught.value) == (
        f"the coordinator at {coordinator.address} refused this participant (UNAUTHENTICATED: {UNKNOWN}); "
        "get a valid token from the coordinator's operator (token=, or --token-file)"
    )
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED


def test_who_takes_anothers_id_is_refused_for_good(make: Make, run: Runs) -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.end(grpc.StatusCode.PERMISSION_DENIED, "the token is edge-7's, not edge-8's")

    with guarded(script) as coordinator, pytest.raises(Rejected) as caught:
        run(make("edge-8"), coordinator.address, token=TOKEN)
    assert caught.value.text == "the token is edge-7's, not edge-8's"
    assert caught.value.advice.startswith("use the id that this participant's credentials are for")


def revoking(after: Any = None) -> Any:
    async def script(peer: Peer) -> None:
        await peer.receive()
        if after is not None:
            after()
        await peer.end(grpc.StatusCode.UNAUTHENTICATED, "the token has been revoked")

    return script


def test_a_token_that_is_revoked_ends_a_participant_that_ran(
    make: Make, run: Runs, token: str | Path
) -> None:
    with guarded(revoking()) as coordinator, pytest.raises(Rejected, match="the token has been revoked"):
        run(make(), coordinator.address, token=token)


def test_a_token_that_is_revoked_when_its_file_is_gone_ends_it_too(
    make: Make, run: Runs, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    with guarded(revoking(file.unlink)) as coordinator, pytest.raises(Rejected, match="revoked"):
        run(make(), coordinator.address, token=file)


def test_a_revoked_token_that_has_been_replaced_is_only_an_interruption(
    make: Make, run: Runs, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    participant = make()
    participant.on("train")(lambda instruction: Result())

    async def second(peer: Peer) -> None:
        assert peer.metadata["authorization"] == "Bearer the-new-one"
        await stopping(participant)(peer)

    replace = revoking(lambda: file.write_text("the-new-one"))
    with guarded(replace, second, tokens=(TOKEN, "the-new-one")) as coordinator:
        run(participant, coordinator.address, token=file)
    (line,) = [record.getMessage() for record in log.records if record.levelno == logging.WARNING]
    assert line.startswith(
        f"the coordinator at {coordinator.address} refused a token that has been replaced since "
        "(the token has been revoked); trying again in"
    )


def test_a_token_file_is_read_for_each_connection(make: Make, run: Runs, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)

    async def first(peer: Peer) -> None:
        await peer.receive()
        file.write_text("the-new-one")
        await peer.send(reconnect(0.01))
        await peer.expect_leave()

    async def second(peer: Peer) -> None:
        assert peer.metadata["authorization"] == "Bearer the-new-one"
        await stopping(participant)(peer)

    participant = make()
    with guarded(first, second, tokens=(TOKEN, "the-new-one")) as coordinator:
        run(participant, coordinator.address, token=file)


# Where it is sent.


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("unix:/run/muster.sock", True),
        ("dns:///localhost:1", True),
        ("ipv4:127.0.0.1:1", True),
        ("10.0.0.1:1", False),
        ("coordinator.example:1", False),
        ("localhost.example:1", False),
        ("dns:///coordinator.example:1", False),
        ("dns://127.0.0.1/coordinator.example:1", False),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("vsock:2:1", False),
    ],
)
def test_a_token_leaves_this_machine_only_over_tls(
    address: str, local: bool, make: Make, run: Runs, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "pki")
    client.connection(address, token=TOKEN, tls=TLS(authority.ca))
    if local:
        client.connection(address, token=TOKEN)
        aio.connection(address, token=TOKEN)
        return
    text = f"the token won't go to {address} in plaintext, where others could read it; connect with TLS"
    for connect in (client.connection, aio.connection):
        with pytest.raises(CredentialsError) as caught:
            connect(address, token=TOKEN)
        assert str(caught.value).startswith(text)
    with pytest.raises(CredentialsError) as caught:
        run(make(token=TOKEN), address, tls=False)
    assert str(caught.value).startswith(text)


def test_sent_elsewhere_in_plaintext_it_keeps_its_token_and_comes_back(
    make: Make, run: Runs, log: pytest.LogCaptureFixture
) -> None:
    async def first(peer: Peer) -> None:
        await peer.receive()
        await peer.send(reconnect(0.01, "192.0.2.1:50051"))
        await peer.expect_leave()

    participant = make()
    participant.on("train")(lambda instruction: Result())
    with guarded(first, stopping(participant)) as coordinator:
        run(participant, coordinator.address, token=TOKEN)
    (line,) = [record.getMessage() for record in log.records if record.levelno == logging.WARNING]
    assert line.startswith("the token won't go to 192.0.2.1:50051 in plaintext")


def test_sent_elsewhere_with_tls_it_shows_its_token_there(make: Make, run: Runs, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    credentials = server_credentials(authority.issue("127.0.0.1"))
    participant = make()
    with guarded(stopping(participant), credentials=credentials) as there:

        async def script(peer: Peer) -> None:
            await peer.receive()
            await peer.send(reconnect(0.01, there.address))
            await peer.expect_leave()

        with guarded(script, credentials=credentials) as here:
            run(participant, here.address, tls=TLS(authority.ca), token=TOKEN)


def test_a_server_that_is_not_trusted_never_sees_the_token(make: Make, run: Runs, tmp_path: Path) -> None:
    impostor = Authority(tmp_path / "impostor")
    authority = Authority(tmp_path / "ours")
    doorkeeper = Doorkeeper(TOKEN)
    with ScriptedCoordinator(
        credentials=server_credentials(impostor.issue("127.0.0.1")), interceptors=[doorkeeper]
    ) as coordinator:
        with pytest.raises(ConnectionLost, match="is of no CA that is in"):
            run(make(), coordinator.address, tls=TLS(authority.ca), token=TOKEN, attempts=0)
        assert doorkeeper.shown == []


# That it shows nowhere.


def test_what_can_be_no_token_is_told_at_once(make: Make, run: Runs, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    tokens: list[tuple[str | Path, str]] = [
        ("two words", "is no token"),
        (nowhere, f"can't read the token in '{nowhere}'"),
    ]
    for token, text in tokens:
        for connect in (client.connection, aio.connection):
            with pytest.raises(CredentialsError, match=text):
                connect("127.0.0.1:1", token=token)
        with pytest.raises(CredentialsError, match=text):
            run(make(), "127.0.0.1:1", token=token)
    with pytest.raises(TypeError, match="token= takes a str, or the Path of a file, not bytes"):
        run(make(), "127.0.0.1:1", token=TOKEN.encode())


def test_a_token_shows_in_no_log_and_no_error(
    make: Make, run: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    errors: list[ParticipantError] = []
    participant = make("edge-7", token=TOKEN)

    async def first(peer: Peer) -> None:
        await peer.receive()
        await peer.end(grpc.StatusCode.UNAVAILABLE, "going down")

    with guarded(first, stopping(participant)) as coordinator:
        run(participant, coordinator.address)
    with guarded(tokens=()) as coordinator, pytest.raises(Rejected) as caught:
        run(participant, coordinator.address)
    errors.append(caught.value)
    with pytest.raises(ConnectionLost) as lost:
        run(participant, "127.0.0.1:1", attempts=0)
    errors.append(lost.value)
    for token in (TOKEN, f"{TOKEN} {TOKEN}"):
        with pytest.raises(CredentialsError) as unusable:
            client.connection("192.0.2.1:1", token=token, tls=None if token == TOKEN else True)
        errors.append(unusable.value)

    assert "going down" in caplog.text
    shown = [caplog.text, repr(participant), repr(client.connection("127.0.0.1:1", token=TOKEN))]
    shown += [repr(Credentials.of(None, TOKEN)), str(Credentials.of(True, TOKEN))]
    shown += [text for error in errors for text in (repr(error), str(error), repr(vars(error)))]
    shown += [repr(pickle.dumps(error)) for error in errors]
    assert not [text for text in shown if "c2VjcmV0" in text]
