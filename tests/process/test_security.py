"""TLS, mutual TLS and tokens for participants: who gets in, who doesn't, and what changes while it runs.

Clients are raw gRPC, independent of the SDK, or the standard library's TLS.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from coordinator import Coordinator, CoordinatorGone, connect
from manager import Security, create_participant_manager
from manager.serving.gate import Gate
from protos import messages, stream_pb2
from tests.authority import FUTURE, PAST, Authority, Pair, Tokens
from tests.fuzz import strangers
from tests.process.running import (
    BIN,
    Process,
    RunningCoordinator,
    again,
    kill,
    killed,
    run,
    start_coordinator,
)
from tests.support import CONNECT, PATIENCE, Device, Devices, eventually, instruction

P = stream_pb2.ParticipantMessage
REVOKED = "the token of this participant has been revoked"
INVALID = "the token is not valid, or not any more"


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path)


def hello(name: str = "") -> P:
    return P(hello=stream_pb2.Hello(participant_id=name))


def credentials(authority: Authority | None, own: Pair | None = None) -> grpc.ChannelCredentials:
    key, chain = (None, None) if own is None else own.bytes()
    return grpc.ssl_channel_credentials(None if authority is None else authority.pem, key, chain)


def ended(device: Device) -> tuple[str, str]:
    code, text = eventually(lambda: device.ended, what="the end of the stream")
    return code.name, text


def echoes(coordinator: RunningCoordinator, count: int) -> list[str]:
    """Who answers, sorted; there must be so many."""
    with connect(coordinator.control) as connection:
        outcome = connection.get_participants(count, timeout=PATIENCE).run(
            instruction("echo"), timeout=PATIENCE
        )
        assert len(outcome.results) == count
        return sorted(participant.id for participant in outcome.results)


def nothing_is_shown(coordinator: RunningCoordinator, secrets: Iterable[str]) -> None:
    """Of secrets, neither by ``ps`` nor in the log."""
    processes = [psutil.Process(coordinator.pid), *coordinator.children()]
    shown = [coordinator.output, *(" ".join(process.cmdline()) for process in processes)]
    for secret in secrets:
        assert not any(secret in text for text in shown)


# TLS


def test_participants_connect_by_tls_to_all_workers(
    tmp_path: Path, devices: Devices, authority: Authority
) -> None:
    server = authority.server()
    with start_coordinator(tmp_path / "log", "--workers=2", *server.options) as coordinator:
        for number in range(16):
            devices.one(coordinator.listen, hello(f"d{number}"), credentials(authority))
        eventually(lambda: coordinator.status()["participants"] == 16)
        assert all(worker["participants"] for worker in coordinator.status()["workers"])
        assert len(echoes(coordinator, 16)) == 16
        plain = devices.one(coordinator.listen, hello("plain"))
        assert ended(plain)[0] == "UNAVAILABLE"
        stranger = devices.one(coordinator.listen, hello("x"), credentials(Authority(tmp_path, "other")))
        assert ended(stranger)[0] == "UNAVAILABLE", "it trusts another authority"
        assert coordinator.status()["participants"] == 16
        nothing_is_shown(coordinator, Path(server.key).read_text().splitlines()[1:-1])


def handshake(
    address: str,
    authority: Authority,
    own: Pair | None = None,
    version: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
) -> tuple[str | None, dict[str, Any]]:
    """TLS by the standard library: its version, and the server's certificate. Raises OSError if it fails."""
    context = ssl.create_default_context(cadata=authority.pem.decode())
    if own is not None:
        context.load_cert_chain(*own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")  # whatever this side might object to
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        assert connection.recv(1), "the server speaks first in HTTP/2, once it is content"
        return connection.version(), dict(connection.getpeercert() or {})


def test_old_versions_of_tls_are_refused(tmp_path: Path, authority: Authority) -> None:
    with start_coordinator(tmp_path / "log", "--workers=1", *authority.server().options) as coordinator:
        for version, name in [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")]:
            assert handshake(coordinator.listen, authority, version=version)[0] == name
        for old in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            with pytest.raises((ssl.SSLError, ConnectionError)) as caught:
                handshake(coordinator.listen, authority, version=old)
            assert "NO_PROTOCOLS_AVAILABLE" not in str(caught.value), "it is the server that refuses"


def test_a_certificate_is_renewed_and_no_stream_is_cut(
    tmp_path: Path, devices: Devices, authority: Authority
) -> None:
    server = authority.server()
    with start_coordinator(tmp_path / "log", "--workers=2", *server.options) as coordinator:

        def serials() -> set[str]:
            """Of those that are shown; with this many handshakes by both workers."""
            return {str(handshake(coordinator.listen, authority)[1]["serialNumber"]) for _ in range(12)}

        before = serials()
        assert len(before) == 1
        joined = [devices.one(coordinator.listen, hello(f"d{n}"), credentials(authority)) for n in range(8)]
        eventually(lambda: coordinator.status()["participants"] == 8)
        with connect(coordinator.control) as connection:
            cohort = connection.get_participants(8, timeout=PATIENCE)
            with cohort.stream(instruction("hold"), timeout=3 * PATIENCE) as answers:
                eventually(lambda: all(device.holding.is_set() for device in joined))
                server.replace(authority.server())
                eventually(lambda: len(serials() | before) == 2 and not serials() & before)
                for device in joined:
                    device.release()
                assert len(list(answers)) == 8
        devices.one(coordinator.listen, hello("new"), credentials(authority))
        assert len(echoes(coordinator, 9)) == 9
        assert not any(device.ended for device in joined)
        Path(server.key).write_text("junk")
        said = "the certificates stay as they were: "
        eventually(lambda: said in coordinator.output)
        eventually(lambda: [each.startswith(said) for each in coordinator.status()["troubles"]] == [True])
        assert handshake(coordinator.listen, authority)[0] == "TLSv1.3"
        assert len(echoes(coordinator, 9)) == 9


# Mutual TLS


def test_a_participant_is_known_by_its_certificate(
    tmp_path: Path, devices: Devices, authority: Authority
) -> None:
    options = [*authority.server().options, f"--tls-client-ca={authority.file}"]
    with start_coordinator(tmp_path / "log", "--workers=2", *options) as coordinator:

        def come(name: str, own: Pair | None) -> Device:
            return devices.one(coordinator.listen, hello(name), credentials(authority, own))

        seven = authority.participant("hospital-7")
        first = come("", seven)
        come("hospital-8", authority.participant("hospital-8"))
        come("", authority.issue("hospital-9.example.org", "other.example.org"))
        eventually(lambda: coordinator.status()["participants"] == 3)
        assert echoes(coordinator, 3) == ["hospital-7", "hospital-8", "hospital-9.example.org"]

        impostor = come("hospital-8", seven)
        assert ended(impostor) == (
            "PERMISSION_DENIED",
            "the hello names hospital-8, but the credentials are those of hospital-7; leave the name out, or "
            "use the credentials that go with it",
        )
        made_up = come("", authority.participant("anonymous-1"))
        assert ended(made_up)[0] == "UNAUTHENTICATED"
        cut_off = come("", authority.participant("hospital-7\0.example.org"))
        assert ended(cut_off) == ("UNAUTHENTICATED", "the name in the certificate has a NUL byte in it")
        eventually(lambda: coordinator.refused("credentials") == 3)
        assert echoes(coordinator, 3) == ["hospital-7", "hospital-8", "hospital-9.example.org"]
        assert first.ended is None

        newer = come("hospital-7", seven)
        assert ended(first)[0] == "ALREADY_EXISTS", "the newer session replaces the older, as ever"
        eventually(lambda: coordinator.status()["participants"] == 3)
        assert newer.ended is None


def test_who_has_no_good_certificate_does_not_get_through_the_handshake(
    tmp_path: Path, devices: Devices, authority: Authority
) -> None:
    options = [*authority.server().options, f"--tls-client-ca={authority.file}"]
    other = Authority(tmp_path, "other")
    with start_coordinator(tmp_path / "log", "--workers=1", *options) as coordinator:
        good = authority.participant("hospital-7")
        assert handshake(coordinator.listen, authority, good)[0] == "TLSv1.3"
        for bad in (
            None,
            other.participant("hospital-7"),
            authority.participant("hospital-7", **PAST),
            authority.participant("hospital-7", **FUTURE),
        ):
            refused = devices.one(coordinator.listen, hello(), credentials(authority, bad))
            assert ended(refused)[0] == "UNAVAILABLE"
            with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
                handshake(coordinator.listen, authority, bad)
        assert coordinator.status()["participants"] == 0
        devices.one(coordinator.listen, hello(), credentials(authority, good))
        assert echoes(coordinator, 1) == ["hospital-7"]


def test_a_certificate_that_has_expired_opens_no_stream_on_a_connection_that_it_has(
    tmp_path: Path, devices: Devices, authority: Authority
) -> None:
    """Nor by a TLS session that is resumed: TLS looks at it once."""
    options = [*authority.server().options, f"--tls-client-ca={authority.file}"]
    with (
        start_coordinator(tmp_path / "log", "--workers=1", *options) as coordinator,
        contextlib.ExitStack() as stack,
    ):

        def comes_and_goes() -> Any:
            call = connect_by(channel)(iter([b""]))
            with contextlib.suppress(grpc.RpcError):
                for _ in call:
                    pass
            return call

        for seconds in (5, 20):  # on a machine under load the first may have expired before it is shown
            soon = datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=seconds)
            tls = credentials(authority, authority.participant("a", not_after=soon))
            channel = stack.enter_context(grpc.secure_channel(coordinator.listen, tls))
            if (code := comes_and_goes().code()) is grpc.StatusCode.OK:
                break
        assert code is grpc.StatusCode.OK
        eventually(lambda: comes_and_goes().code() is grpc.StatusCode.UNAUTHENTICATED, 3 * PATIENCE)
        assert comes_and_goes().details() == "the certificate has expired"


# Tokens


def test_participants_are_known_by_tokens_that_are_issued_and_revoked_while_it_runs(
    tmp_path: Path, devices: Devices, authority: Authority, tokens: Tokens
) -> None:
    tokens.issue("a", "b")
    options = ["--workers=2", *authority.server().options, tokens.option]
    with start_coordinator(tmp_path / "log", *options) as coordinator:

        def come(token: str | None, name: str = "") -> Device:
            return devices.one(coordinator.listen, hello(name), credentials(authority), token)

        def gets_in(token: str) -> Device | None:
            before = coordinator.status()["participants"]
            device = come(token)
            eventually(lambda: device.ended or coordinator.status()["participants"] > before)
            return None if device.ended else device

        first, second = come(tokens.issued["a"]), come(tokens.issued["b"], "b")
        assert echoes(coordinator, 2) == ["a", "b"]

        wrong = "muster_" + "x" * 43
        assert ended(come(None))[0] == "UNAUTHENTICATED"
        assert ended(come(wrong)) == ("UNAUTHENTICATED", INVALID)
        assert ended(come(wrong, "a")) == ("UNAUTHENTICATED", INVALID), "no other text where there is an a"
        assert ended(come(tokens.issued["a"], "b"))[0] == "PERMISSION_DENIED"
        eventually(lambda: coordinator.refused("credentials") == 4)
        assert sum(worker["refused"].get("credentials", 0) for worker in coordinator.status()["workers"]) == 4
        assert coordinator.status()["participants"] == 2
        assert (first.ended, second.ended) == (None, None)

        tokens.issue("c")
        third = eventually(lambda: gets_in(tokens.issued["c"]), what="the new token to be good")
        with ThreadPoolExecutor(1) as pool, connect(coordinator.control) as connection:
            cohort = connection.get_participants(3, timeout=PATIENCE)
            call = pool.submit(cohort.run, instruction("hold"), timeout=3 * PATIENCE)
            eventually(lambda: all(device.holding.is_set() for device in (first, second, third)))
            tokens.revoke("a")
            assert ended(first) == ("UNAUTHENTICATED", REVOKED)
            second.release()
            third.release()
            outcome = call.result()
            assert [participant.id for participant in outcome.lost] == ["a"]
            assert sorted(participant.id for participant in outcome.results) == ["b", "c"]
        # Each worker looks at the file by itself: another may have let it in, and then ends it.
        eventually(lambda: ended(come(tokens.issued["a"])) == ("UNAUTHENTICATED", INVALID))
        eventually(lambda: coordinator.refused("credentials") >= 6)
        eventually(lambda: coordinator.status()["participants"] == 2)
        eventually(lambda: f"): {REVOKED}" in coordinator.output)
        nothing_is_shown(coordinator, [*tokens.issued.values(), wrong])


def test_a_token_is_replaced_by_another_without_a_gap(
    tmp_path: Path, devices: Devices, tokens: Tokens
) -> None:
    tokens.issue("a")
    old = tokens.issued["a"]
    with start_coordinator(tmp_path / "log", "--workers=1", tokens.option) as coordinator:
        first = devices.one(coordinator.listen, hello(), token=old)
        assert echoes(coordinator, 1) == ["a"]
        tokens.issue("a")

        def gets_in() -> bool:
            device = devices.one(coordinator.listen, hello(), token=tokens.issued["a"])
            eventually(lambda: device.ended or first.ended)
            return device.ended is None

        eventually(gets_in)
        assert ended(first)[0] == "ALREADY_EXISTS"
        tokens.run("revoke", "a", "--keep-newest")
        # Under another's name it would take nobody's place while its token is still good.
        eventually(lambda: INVALID in ended(devices.one(coordinator.listen, hello("b"), token=old)))
        assert echoes(coordinator, 1) == ["a"]


def test_with_both_a_token_alone_is_not_enough(
    tmp_path: Path, devices: Devices, authority: Authority, tokens: Tokens
) -> None:
    tokens.issue("a", "b")
    options = [*authority.server().options, f"--tls-client-ca={authority.file}", tokens.option]
    with start_coordinator(tmp_path / "log", "--workers=1", *options) as coordinator:
        own = authority.participant("a")
        for token, pair, code in [
            (tokens.issued["a"], None, "UNAVAILABLE"),
            (None, own, "UNAUTHENTICATED"),
            (tokens.issued["b"], own, "UNAUTHENTICATED"),
        ]:
            refused = devices.one(coordinator.listen, hello(), credentials(authority, pair), token)
            assert ended(refused)[0] == code
        devices.one(coordinator.listen, hello(), credentials(authority, own), tokens.issued["a"])
        assert echoes(coordinator, 1) == ["a"]


def test_a_single_process_and_an_embedded_coordinator_have_it_all_as_well(
    devices: Devices, authority: Authority, tokens: Tokens
) -> None:
    tokens.issue("a")
    pair = authority.server()
    security = Security(tls_cert=pair.cert, tls_key=pair.key, tokens=tokens.file)

    def check(address: str, manager: Any) -> None:
        stranger = devices.one(address, hello(), credentials(authority))
        assert ended(stranger)[0] == "UNAUTHENTICATED"
        device = devices.one(address, hello(), credentials(authority), tokens.issued["a"])
        (participant,) = manager.get_participants(1, timeout=PATIENCE)
        assert participant.id == "a"
        assert participant.run(instruction("echo", b"x"), PATIENCE).result.payload == b"x"
        tokens.revoke("a")
        assert ended(device) == ("UNAUTHENTICATED", REVOKED)
        tokens.issue("a")

    server, manager = create_participant_manager(listen="127.0.0.1:0", security=security)
    with server:
        check(server.address, manager)
    with Coordinator(workers=1, listen="127.0.0.1:0", security=security, log_level="critical") as coordinator:
        check(coordinator.listen, coordinator)
        eventually(lambda: coordinator.status().refused == {"credentials": 2})


def test_a_look_at_the_files_that_fails_is_not_the_last(
    devices: Devices, tokens: Tokens, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tokens.issue("a")
    look, failures = Gate.look, iter([OSError("a bad disk")])

    def fail_once(gate: Gate) -> bool:
        for failure in failures:
            raise failure
        return look(gate)

    monkeypatch.setattr(Gate, "look", fail_once)
    server, manager = create_participant_manager(listen="127.0.0.1:0", security=Security(tokens=tokens.file))
    with server:
        device = devices.one(server.address, hello(), token=tokens.issued["a"])
        assert manager.get_participants(1, timeout=PATIENCE)
        eventually(lambda: "a bad disk" in caplog.text)
        tokens.revoke("a")
        assert ended(device) == ("UNAUTHENTICATED", REVOKED)


def test_the_sdk_takes_part_with_a_token_until_that_is_revoked(
    tmp_path: Path, authority: Authority, tokens: Tokens
) -> None:
    tokens.issue("p-0")
    (tmp_path / "token").write_text(tokens.issued["p-0"])
    options = ["--workers=1", *authority.server().options, tokens.option]
    with start_coordinator(tmp_path / "log", *options) as coordinator:
        participant = Process(
            [
                str(BIN / "participant"),
                "start",
                "--app=tests.process.echo_app:participants",
                f"--connect={coordinator.listen}",
                f"--ca={authority.file}",
                f"--token-file={tmp_path / 'token'}",
            ],
            tmp_path / "participant.log",
            {"ECHO_PREFIX": "p", "ECHO_COUNT": "1"},
        )
        try:
            with connect(coordinator.control) as connection:
                (found,) = connection.get_participants(1, timeout=3 * PATIENCE)
                assert found.id == "p-0"
                number = messages.instruction("echo", config={"number": 1})
                assert found.run(number, PATIENCE).result.status == "p-0"
            tokens.revoke("p-0")
            assert participant.wait() != 0
            assert "UNAUTHENTICATED" in participant.output
        finally:
            participant.end()


# A restart


def test_a_coordinator_that_is_killed_finds_its_workers_and_they_keep_streams_and_rules(
    tmp_path: Path, devices: Devices, authority: Authority, tokens: Tokens
) -> None:
    tokens.issue("a", "b")
    options = ["--workers=2", *authority.server().options, tokens.option]
    with killed(tmp_path / "first.log", *options) as first:
        workers = first.children()
        device = devices.one(first.listen, hello(), credentials(authority), tokens.issued["a"])
        eventually(lambda: first.status()["participants"] == 1)
        kill(first)
        with start_coordinator(tmp_path / "second.log", *options, *again(first)) as second:
            assert echoes(second, 1) == ["a"]
            assert device.ended is None
            assert {worker["pid"] for worker in second.status()["workers"]} == {each.pid for each in workers}
            devices.one(second.listen, hello(), credentials(authority), tokens.issued["b"])
            assert echoes(second, 2) == ["a", "b"]
            stranger = devices.one(second.listen, hello(), credentials(authority))
            assert ended(stranger)[0] == "UNAUTHENTICATED"
            tokens.revoke("a")
            assert ended(device) == ("UNAUTHENTICATED", REVOKED)


def test_a_coordinator_that_is_started_again_with_tokens_renews_workers_without(
    tmp_path: Path, devices: Devices, tokens: Tokens
) -> None:
    tokens.issue("a")
    with killed(tmp_path / "first.log", "--workers=2") as first:
        workers = first.children()
        devices.one(first.listen, hello("anybody"))
        eventually(lambda: first.status()["participants"] == 1)
        kill(first)
        options = ["--workers=2", *again(first), tokens.option]
        with start_coordinator(tmp_path / "second.log", *options) as second:
            eventually(lambda: not any(worker.is_running() for worker in workers), 3 * PATIENCE)
            eventually(lambda: {worker["state"] for worker in second.status()["workers"]} == {"up"})
            assert ended(devices.one(second.listen, hello("anybody")))[0] == "UNAUTHENTICATED"
            devices.one(second.listen, hello(), token=tokens.issued["a"])
            with connect(second.control) as connection:  # which may still expect the one that was sent away
                cohort = connection.get_participants(1, timeout=PATIENCE)
                (proxy,) = (proxy for proxy in cohort if proxy.id == "a")
                assert proxy.run(instruction("echo", b"x"), PATIENCE).result.payload == b"x"


def test_workers_that_let_in_strangers_go_at_once_and_wait_for_nobody(
    tmp_path: Path, devices: Devices, tokens: Tokens
) -> None:
    """Else the last of them would wait for what the others' participants still work on."""
    tokens.issue("a")
    with killed(tmp_path / "first.log", "--workers=3") as first:
        workers = first.children()
        joined = devices.join(first.listen, 40)  # so many that each worker has some
        eventually(lambda: all(worker["participants"] for worker in first.status()["workers"]))
        with ThreadPoolExecutor(1) as pool, connect(first.control) as connection:
            cohort = connection.get_participants(40, timeout=PATIENCE)
            call = pool.submit(cohort.run, instruction("hold"), timeout=PATIENCE)
            eventually(lambda: all(device.holding.is_set() for device in joined))
            kill(first)
            assert isinstance(call.exception(), CoordinatorGone)
        options = ["--workers=3", *again(first), "--grace=120", tokens.option]
        with start_coordinator(tmp_path / "second.log", *options) as second:
            eventually(lambda: all(device.ended for device in joined))
            eventually(lambda: {worker["state"] for worker in second.status()["workers"]} == {"up"})
            eventually(lambda: not any(worker.is_running() for worker in workers))
            assert ended(devices.one(second.listen, hello("anybody")))[0] == "UNAUTHENTICATED"
            devices.one(second.listen, hello(), token=tokens.issued["a"])
            eventually(lambda: echoes(second, 1) == ["a"])


# What is refused at the start


def test_a_start_that_would_not_be_safe_is_refused_with_what_to_do(
    tmp_path: Path, authority: Authority, tokens: Tokens
) -> None:
    pair, other = authority.server(), authority.server()
    for options, code, words in [
        (["--listen=0.0.0.0:0"], 2, "would connect to 0.0.0.0:0 without encryption"),
        (["--listen=[::]:0", tokens.option], 2, "tokens would travel to [::]:0 for everybody to read"),
        ([f"--tls-cert={pair.cert}"], 2, "--tls-cert is of no use without --tls-key"),
        ([f"--tls-client-ca={authority.file}"], 2, "--tls-client-ca is of no use without --tls-cert"),
        (["--tokens=/nowhere/tokens"], 2, "File '/nowhere/tokens' does not exist"),
        ([f"--tls-cert={pair.cert}", f"--tls-key={other.key}"], 1, f"the key in {other.key} is not that of"),
        ([f"--tokens={pair.key}"], 1, f"{pair.key} is no file of tokens: line 1: write a name"),
    ]:
        done = run("coordinator", "start", "--control=127.0.0.1:0", *options)
        assert done.returncode == code, done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("Error: ")
        assert words in last
        assert "Traceback" not in done.stderr


def elsewhere() -> str:
    """An address of this machine that isn't loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probing, contextlib.suppress(OSError):
        probing.connect(("192.0.2.254", 9))  # sends nothing
        return str(probing.getsockname()[0])
    return "127.0.0.1"


needs_a_network = pytest.mark.skipif(elsewhere().startswith("127."), reason="this machine has loopback alone")


@needs_a_network
def test_plaintext_that_was_asked_for_is_served_with_a_warning_and_one_address_gets_its_share(
    tmp_path: Path, devices: Devices
) -> None:
    options = ["--workers=1", "--listen=0.0.0.0:0", "--insecure", "--max-per-address=3"]
    with start_coordinator(tmp_path / "log", *options) as coordinator:
        (warning,) = [each for each in coordinator.records() if each["level"] == "warning"]
        assert "INSECURE: participants connect to 0.0.0.0:0 without encryption" in warning["event"]
        port = coordinator.listen.rpartition(":")[2]
        crowd = devices.join(f"{elsewhere()}:{port}", 9)
        eventually(lambda: sum(device.reconnect is not None for device in crowd) >= 3)
        eventually(lambda: coordinator.refused("max_per_address") == 6)
        assert coordinator.status()["participants"] == 3
        devices.join(f"127.0.0.1:{port}", 9, prefix="local")
        eventually(lambda: coordinator.status()["participants"] == 12)


def test_strangers_at_the_port_disturb_nobody_and_do_not_fill_the_log(
    tmp_path: Path, devices: Devices, authority: Authority, tokens: Tokens
) -> None:
    tokens.issue("a")
    options = ["--workers=1", *authority.server().options, tokens.option]
    with start_coordinator(tmp_path / "log", *options) as coordinator:
        device = devices.one(coordinator.listen, hello(), credentials(authority), tokens.issued["a"])
        assert echoes(coordinator, 1) == ["a"]
        lines, since = len(coordinator.output.splitlines()), time.monotonic()
        devices.run(strangers.visit_often(coordinator.listen, CONNECT, 60, seed=1))
        for _ in range(20):
            assert (
                ended(devices.one(coordinator.listen, hello(), credentials(authority)))[0]
                == "UNAUTHENTICATED"
            )
        eventually(lambda: coordinator.refused("credentials") == 20)
        for number in range(20):
            ask_for_another(coordinator.listen, f"{number}.example.org")
        few = 2 + (time.monotonic() - since) // 10 * 4  # each kind is summed up every ten seconds
        assert len(coordinator.output.splitlines()) <= lines + few, coordinator.output
        assert echoes(coordinator, 1) == ["a"]
        assert device.ended is None


def ask_for_another(listen: str, name: str) -> None:
    """Shakes hands with a server of another name."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, _, port = listen.rpartition(":")
    with (
        socket.create_connection((host, int(port)), PATIENCE) as connection,
        context.wrap_socket(connection, server_hostname=name),
    ):
        pass


# What is too large


def connect_by(channel: grpc.Channel) -> Any:
    """The method, with bytes in and out."""
    return channel.stream_stream(CONNECT)


def test_a_little_that_decompresses_to_very_much_stays_a_little(tmp_path: Path, devices: Devices) -> None:
    with start_coordinator(tmp_path / "log", "--workers=1") as coordinator:
        (innocent,) = devices.join(coordinator.listen, 1)
        eventually(lambda: coordinator.status()["participants"] == 1)
        (worker,) = [each for each in coordinator.children() if "manager" in " ".join(each.cmdline())]
        before = worker.memory_info().rss
        bomb = bytes(100 * 1024**2)
        options = [("grpc.max_send_message_length", -1)]
        for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            with grpc.insecure_channel(coordinator.listen, options, compression) as channel:
                with pytest.raises(grpc.RpcError) as caught:
                    next(connect_by(channel)(iter([bomb])))
                error: Any = caught.value
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert error.details().endswith("gRPC's compression must not be used")
        assert worker.memory_info().rss - before < 30 * 1024**2
        eventually(lambda: coordinator.refused("compression") == 2)
        assert innocent.ended is None


def test_headers_have_a_limit(tmp_path: Path, devices: Devices) -> None:
    with start_coordinator(tmp_path / "log", "--workers=1", "--max-metadata=4KiB") as coordinator:
        (innocent,) = devices.join(coordinator.listen, 1)
        with grpc.insecure_channel(coordinator.listen) as channel:
            for size, fits in [(3_000, True), (5_000, False), (10_000, False), (1_000_000, False)]:
                call = connect_by(channel)(iter([b"\xff"]), metadata=[("authorization", "x" * size)])
                with pytest.raises(grpc.RpcError) as caught:
                    next(call)
                error: Any = caught.value
                wanted = grpc.StatusCode.INVALID_ARGUMENT if fits else grpc.StatusCode.RESOURCE_EXHAUSTED
                assert error.code() is wanted
                if size == 5_000:  # what is larger gRPC refuses by itself
                    assert "headers of 5" in error.details()
                    assert "--max-metadata" in error.details()
        eventually(lambda: coordinator.status()["refused"] == {"max_metadata": 1, "protocol": 1})
        assert echoes(coordinator, 1) == [innocent.id]
        assert innocent.ended is None


@pytest.mark.long(8)
@pytest.mark.parametrize("encrypted", [False, True], ids=["plaintext", "TLS"])
def test_connections_on_which_nothing_happens_are_closed(
    tmp_path: Path, devices: Devices, authority: Authority, encrypted: bool
) -> None:
    """And what isn't a matter of gRPC's own is counted."""
    tls = credentials(authority) if encrypted else None
    timeouts = ["--handshake-timeout=6", "--idle-timeout=6", "--hello-timeout=6"]
    options = [*(authority.server().options if encrypted else ()), *timeouts]
    with start_coordinator(tmp_path / "log", "--workers=1", *options) as coordinator:
        idle = devices.one(coordinator.listen, hello("idle"), tls)
        eventually(lambda: coordinator.status()["participants"] == 1)
        host, _, port = coordinator.listen.rpartition(":")
        with contextlib.ExitStack() as stack:
            silent, plain = (
                stack.enter_context(socket.create_connection((host, int(port)), PATIENCE)) for _ in range(2)
            )
            connection = plain
            if encrypted:
                context = ssl.create_default_context(cadata=authority.pem.decode())
                context.set_alpn_protocols(["h2"])
                connection = stack.enter_context(context.wrap_socket(plain, server_hostname=host))
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            mute = devices.one(coordinator.listen, None, tls)  # a stream, but no message
            read_to_the_end(silent)  # no TLS, no HTTP/2
            read_to_the_end(connection)  # a connection, but no stream
        assert ended(mute) == (
            "DEADLINE_EXCEEDED",
            "no first message came in 6 s; connect again, and say hello",
        )
        eventually(lambda: coordinator.refused("hello_timeout") == 1)
        eventually(
            lambda: coordinator.refused("handshake_timeout") + coordinator.refused("idle_timeout") >= 2
        )
        assert echoes(coordinator, 1) == ["idle"]
        assert idle.ended is None


def test_who_makes_no_handshake_is_closed_in_time(tmp_path: Path, authority: Authority) -> None:
    timeouts = ["--handshake-timeout=2", "--idle-timeout=600", "--keepalive=600"]
    with start_coordinator(
        tmp_path / "log", "--workers=1", *authority.server().options, *timeouts
    ) as coordinator:
        host, _, port = coordinator.listen.rpartition(":")
        with socket.create_connection((host, int(port)), PATIENCE) as silent:
            read_to_the_end(silent)
        eventually(lambda: coordinator.status()["refused"] == {"handshake_timeout": 1})


def read_to_the_end(connection: socket.socket) -> None:
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(65536):
            pass
