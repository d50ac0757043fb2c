"""Connections with TLS, and what is said when there is none, against real servers of gRPC's."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import threading
from pathlib import Path

import grpc
import pytest

from participant_sdk import (
    TLS,
    ConnectionLost,
    CredentialsError,
    Participant,
    Result,
    aio,
    client,
)
from participant_sdk.participant import run_all
from protos import stream_pb2
from tests.certificates import FUTURE, PAST, Authority, Pair, server_credentials
from tests.participant_sdk.support import (
    PATIENCE,
    Forever,
    Make,
    Peer,
    Runs,
    ScriptedCoordinator,
    reconnect,
)

HOST = "127.0.0.1"
EMPTY = stream_pb2.ParticipantMessage()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki") / "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki") / "another")


@pytest.fixture(scope="module")
def server(authority: Authority) -> Pair:
    return authority.issue(HOST, "localhost")


async def one_exchange(peer: Peer) -> None:
    await peer.receive()
    assert await peer.ask("train") == EMPTY
    await peer.expect_leave()


def take_part(connection: client.Connection) -> None:
    with connection as (consume, dispatch):
        dispatch(EMPTY)
        consume()
        dispatch(EMPTY)


def test_a_connection_with_tls(authority: Authority, server: Pair) -> None:
    credentials = server_credentials(server)
    with ScriptedCoordinator(one_exchange, one_exchange, credentials=credentials) as coordinator:
        take_part(client.connection(coordinator.address, tls=TLS(authority.ca)))

        async def scenario() -> None:
            async with aio.connection(coordinator.address, tls=TLS(authority.ca)) as (consume, dispatch):
                await dispatch(EMPTY)
                await consume()
                await dispatch(EMPTY)

        asyncio.run(scenario())


def test_whom_the_system_trusts(authority: Authority, server: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    with ScriptedCoordinator(one_exchange, credentials=server_credentials(server)) as coordinator:
        take_part(client.connection(coordinator.address, tls=True))


def test_a_participant_that_shows_a_certificate(
    make: Make, run: Runs, authority: Authority, server: Pair
) -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        assert peer.names == ["edge-7"]
        participant.stop()
        await peer.expect_leave()

    participant = make("edge-7")
    pair = authority.issue("edge-7.example", common_name="edge-7")
    credentials = server_credentials(server, client_ca=authority.ca)
    with ScriptedCoordinator(script, credentials=credentials) as coordinator:
        run(participant, coordinator.address, tls=TLS(authority.ca, pair.cert, pair.key))


def test_participants_of_one_process_with_certificates_of_their_own(
    authority: Authority, server: Pair
) -> None:
    async def script(peer: Peer) -> None:
        hello = (await peer.receive()).hello
        assert peer.names == [hello.participant_id]
        participants[int(hello.participant_id)].stop()
        await peer.expect_leave()

    participants = []
    for name in ("0", "1"):
        pair = authority.issue(f"{name}.example", common_name=name)
        participants.append(Participant(name, tls=TLS(authority.ca, pair.cert, pair.key)))
    credentials = server_credentials(server, client_ca=authority.ca)
    with ScriptedCoordinator(script, script, credentials=credentials) as coordinator:
        assert run_all(participants, coordinator.address) == [None, None]


CASES = {
    "expired": "the server's certificate or its CA's has expired (20",
    "not yet valid": "the server's certificate or its CA's isn't valid yet (20",
    "another name": "the server's certificate is for a.example, not for 127.0.0.1; connect to a name",
    "unknown CA": "the server's certificate is of no CA that is in ",
    "server in plaintext": "the server doesn't speak TLS; start it with --tls-cert and --tls-key",
    "client in plaintext": "the server speaks TLS, and this client plaintext; connect with TLS",
    "no client certificate": "the server wants a client certificate; give one",
    "client certificate of another CA": "the server hangs up on the client certificate in ",
    "client certificate expired": "the client certificate in ",
}


@pytest.mark.parametrize("case", CASES)
def test_why_there_is_no_connection(
    case: str, authority: Authority, stranger: Authority, server: Pair, log: pytest.LogCaptureFixture
) -> None:
    credentials: grpc.ServerCredentials | None = server_credentials(server)
    tls: TLS | None = TLS(authority.ca)
    match case:
        case "expired":
            credentials = server_credentials(authority.issue(HOST, valid=PAST))
        case "not yet valid":
            credentials = server_credentials(authority.issue(HOST, valid=FUTURE))
        case "another name":
            credentials = server_credentials(authority.issue("a.example"))
        case "unknown CA":
            tls = TLS(stranger.ca)
        case "server in plaintext":
            credentials = None
        case "client in plaintext":
            tls = None
        case _:
            credentials = server_credentials(server, client_ca=authority.ca)
            if case == "client certificate of another CA":
                pair = stranger.issue("edge-7.example")
                tls = TLS(authority.ca, pair.cert, pair.key)
            elif case == "client certificate expired":
                pair = authority.issue("edge-7.example", valid=PAST)
                tls = TLS(authority.ca, pair.cert, pair.key)
    with ScriptedCoordinator(credentials=credentials) as coordinator:
        reason = f"can't reach the coordinator at {coordinator.address}: {CASES[case]}"

        async def scenario() -> None:
            async with aio.connection(coordinator.address, tls=tls) as (consume, dispatch):
                with pytest.raises(ConnectionLost) as caught:
                    await dispatch(EMPTY)
                assert str(caught.value).startswith(reason)
                assert caught.value.code is grpc.StatusCode.UNAVAILABLE
                with pytest.raises(ConnectionLost) as again:
                    await consume()
                assert again.value is caught.value

        asyncio.run(scenario())
        participant = Participant("edge-7", tls=tls)
        participant.on("train")(lambda instruction: Result())
        with pytest.raises(ConnectionLost) as caught:  # not Rejected: without attempts it would go on
            participant.run(coordinator.address, attempts=1)
        assert str(caught.value).startswith(reason)
        (line,) = [record.getMessage() for record in log.records if record.levelno == logging.WARNING]
        assert line.startswith(f"edge-7: {reason}")
        assert line.endswith("s (attempt 1)")


def test_an_ordinary_failure_needs_no_second_connection(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def diagnose(*_: object) -> str:
        raise AssertionError("there is nothing to look for where nobody listens")

    monkeypatch.setattr("participant_sdk.stream.diagnose", diagnose)
    with (
        client.connection(f"{HOST}:1", tls=TLS(authority.ca)) as (_, dispatch),
        pytest.raises(ConnectionLost, match="connection refused"),
    ):
        dispatch(EMPTY)


def test_a_reader_and_a_writer_that_fail_together_look_once(
    server: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    async def diagnose(*_: object) -> str:
        nonlocal looks
        looks += 1
        for _turn in range(100):  # turns in which the other one can come
            await asyncio.sleep(0)
        return "look there"

    async def scenario() -> None:
        async with aio.connection(coordinator.address) as (consume, dispatch):
            errors = await asyncio.gather(consume(), dispatch(EMPTY), return_exceptions=True)
        assert errors[0] is errors[1]
        assert "look there" in str(errors[0])

    monkeypatch.setattr("participant_sdk.stream.diagnose", diagnose)
    with ScriptedCoordinator(credentials=server_credentials(server)) as coordinator:
        asyncio.run(scenario())
    assert looks == 1


def test_a_stop_does_not_wait_for_a_diagnosis(
    make: Make, run: Runs, server: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def diagnose(*_: object) -> str:
        participant.stop()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr("participant_sdk.stream.diagnose", diagnose)
    participant = make()
    with ScriptedCoordinator(credentials=server_credentials(server)) as coordinator:
        run(participant, coordinator.address)


def test_renewed_certificates_are_used_from_the_next_connection_on(
    make: Make, run: Runs, authority: Authority, server: Pair, tmp_path: Path
) -> None:
    files = TLS(tmp_path / "ca.pem", tmp_path / "device.pem", tmp_path / "device.key")

    def install(name: str) -> None:
        pair = authority.issue(f"{name}.example", common_name=name)
        for source, target in [
            (authority.ca, "ca.pem"),
            (pair.cert, "device.pem"),
            (pair.key, "device.key"),
        ]:
            shutil.copy(source, tmp_path / target)

    async def first(peer: Peer) -> None:
        await peer.receive()
        assert peer.names == ["old"]
        install("new")
        await peer.send(reconnect(0.01))
        await peer.expect_leave()

    async def second(peer: Peer) -> None:
        await peer.receive()
        assert peer.names == ["new"]
        participant.stop()
        await peer.expect_leave()

    install("old")
    participant = make()
    credentials = server_credentials(server, client_ca=authority.ca)
    with ScriptedCoordinator(first, second, credentials=credentials) as coordinator:
        run(participant, coordinator.address, tls=files)


def test_files_that_break_while_it_runs_are_waited_for(
    make: Make, run: Runs, authority: Authority, server: Pair, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    ca = tmp_path / "ca.pem"
    shutil.copy(authority.ca, ca)

    class Mend(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "can't read the CA certificates" in record.getMessage():
                shutil.copy(authority.ca, ca)

    async def first(peer: Peer) -> None:
        await peer.receive()
        ca.unlink()
        await peer.send(reconnect(0.01))
        await peer.expect_leave()

    async def second(peer: Peer) -> None:
        await peer.receive()
        participant.stop()
        await peer.expect_leave()

    participant = make()
    participant.on("train")(lambda instruction: Result())
    handler = Mend()
    logging.getLogger("muster.participant").addHandler(handler)
    try:
        with ScriptedCoordinator(first, second, credentials=server_credentials(server)) as coordinator:
            run(participant, coordinator.address, tls=TLS(ca))
    finally:
        logging.getLogger("muster.participant").removeHandler(handler)
    (line,) = [record.getMessage() for record in log.records if record.levelno == logging.WARNING]
    assert line.startswith(
        f"can't read the CA certificates in '{ca}' (No such file or directory); trying again"
    )


def test_files_that_are_no_use_from_the_start_are_told_at_once(
    make: Make, run: Runs, authority: Authority, tmp_path: Path
) -> None:
    tls = TLS(tmp_path / "nowhere.pem")
    for connect in (client.connection, aio.connection):
        with pytest.raises(CredentialsError, match=r"can't read the CA certificates in .*nowhere\.pem"):
            connect("example.invalid:1", tls=tls)
    with pytest.raises(CredentialsError, match="can't read the CA certificates"):
        run(make(), "example.invalid:1", tls=tls)
    with pytest.raises(CredentialsError, match="give both, or neither"):
        run(make(tls=TLS(authority.ca, key="some.key")), "example.invalid:1")


def test_files_that_break_before_a_connection_is_opened(authority: Authority, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    shutil.copy(authority.ca, ca)
    connection = client.connection(f"{HOST}:1", tls=TLS(ca))
    ca.unlink()
    with pytest.raises(CredentialsError, match="can't read"), connection:
        pass


def test_something_else_than_a_tls_is_a_type_error(make: Make, run: Runs) -> None:
    for connect in (client.connection, aio.connection):
        with pytest.raises(TypeError, match=r'tls= takes a TLS, as in tls=TLS\(ca="ca.pem"\), or a bool'):
            connect(f"{HOST}:1", tls="ca.pem")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not PosixPath"):
        run(make(), f"{HOST}:1", tls=Path("ca.pem"))


def test_tls_goes_along_to_where_it_is_sent(
    make: Make, run: Runs, authority: Authority, server: Pair
) -> None:
    async def target(peer: Peer) -> None:
        await peer.receive()
        participant.stop()
        await peer.expect_leave()

    participant = make()
    credentials = server_credentials(server)
    with ScriptedCoordinator(target, credentials=credentials) as there:

        async def script(peer: Peer) -> None:
            await peer.receive()
            await peer.send(reconnect(0.01, there.address))
            await peer.expect_leave()

        with ScriptedCoordinator(script, credentials=credentials) as here:
            run(participant, here.address, tls=TLS(authority.ca))


def test_what_a_run_is_given_goes_before_what_the_participant_has(
    make: Make, run: Runs, authority: Authority, stranger: Authority, server: Pair
) -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        participant.stop()
        await peer.expect_leave()

    participant = make(tls=TLS(stranger.ca))
    with ScriptedCoordinator(script, credentials=server_credentials(server)) as coordinator:
        run(participant, coordinator.address, tls=TLS(authority.ca))
    with ScriptedCoordinator(script) as coordinator:
        run(participant, coordinator.address, tls=False)


def test_a_broken_connection_is_not_looked_into(
    authority: Authority, server: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands that lose one server must not come twice each."""

    async def diagnose(*_: object) -> str:
        raise AssertionError("it was connected")

    monkeypatch.setattr("participant_sdk.stream.diagnose", diagnose)
    forever = Forever()
    with (
        ScriptedCoordinator(forever, credentials=server_credentials(server)) as coordinator,
        client.connection(coordinator.address, tls=TLS(authority.ca)) as (consume, dispatch),
    ):
        dispatch(EMPTY)
        assert forever.began.wait(PATIENCE)
        killer = threading.Thread(target=coordinator.kill)
        killer.start()
        with pytest.raises(ConnectionLost, match="lost the coordinator"):
            consume()
        killer.join(PATIENCE)


def test_no_proxy_stands_between_a_participant_and_its_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((HOST, 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://{HOST}:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        with ScriptedCoordinator(one_exchange) as coordinator:
            take_part(client.connection(coordinator.address))


def test_results_of_any_size_pass(make: Make, run: Runs, authority: Authority, server: Pair) -> None:
    payload = bytes(range(256)) * 20_000

    async def script(peer: Peer) -> None:
        await peer.receive()
        assert (await peer.ask("echo", payload=payload)).result.payload == payload
        participant.stop()
        await peer.expect_leave()

    participant = make()
    participant.on("echo")(lambda instruction: Result(payload=instruction.payload))
    with ScriptedCoordinator(script, credentials=server_credentials(server)) as coordinator:
        run(participant, coordinator.address, tls=TLS(authority.ca))
