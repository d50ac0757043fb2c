"""Who may control a coordinator: tokens, a Unix socket, and TLS where other machines can reach it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from coordinator import TLS, Connection, Coordinator, CoordinatorGone, CredentialsError, aio, connect
from coordinator.control.server import VISITORS
from coordinator.settings import Settings
from manager import StartError
from protos import control_pb2
from tests.authority import Authority, Pair, Tokens
from tests.process.running import RunningCoordinator, kill, run, start_coordinator
from tests.process.test_security import elsewhere, needs_a_network
from tests.support import PATIENCE, Devices, eventually, instruction

METHODS = control_pb2.DESCRIPTOR.services_by_name["Control"].methods
"""All that there are: none may be forgotten."""

INVALID = "the token is not valid here, or not any more"


def issued(directory: Path) -> Tokens:
    directory.mkdir(exist_ok=True)
    tokens = Tokens(directory)
    tokens.issue("alice", "bob")
    return tokens


# Tokens, on loopback


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    return issued(tmp_path_factory.mktemp("scripts"))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, tokens: Tokens) -> Iterator[RunningCoordinator]:
    log = tmp_path_factory.mktemp("guarded") / "log"
    with start_coordinator(log, "--workers=1", f"--control-tokens={tokens.file}") as coordinator:
        yield coordinator


@pytest.fixture
def alice(guarded: RunningCoordinator, tokens: Tokens) -> Iterator[Connection[Any]]:
    with connect(guarded.control, token=tokens.issued["alice"]) as connection:
        yield connection


Shown = tuple[tuple[str, str], ...]
"""Metadata of a call."""


def call(address: str, method: str, metadata: Shown, *, message: bytes = b"") -> tuple[str, str]:
    """Status and text of a call without arguments, to whichever kind of method."""
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(address, options=options) as channel:
        open_stream: Any = channel.stream_stream(f"/muster.control.v1.Control/{method}")
        stream = open_stream(iter([message]), metadata=metadata, timeout=PATIENCE)
        try:
            for _ in stream:
                pass
        except grpc.RpcError:
            pass
        return stream.code().name, stream.details()


@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_whatever_is_asked_a_token_is_needed(
    guarded: RunningCoordinator, tokens: Tokens, alice: Connection[Any], tmp_path: Path, method: str
) -> None:
    participants = Tokens(tmp_path)
    participants.issue("alice")
    before = alice.status().refused_scripts
    good, bad = f"Bearer {tokens.issued['alice']}", f"Bearer {participants.issued['alice']}"
    shown: list[tuple[Shown, str]] = [
        ((), "a token is needed (--token-file, or token=), in the call's metadata: authorization: Bearer <"),
        ((("authorization", bad),), INVALID),
        ((("authorization", good[:-1]),), INVALID),
        ((("authorization", "Bearer"),), "the call's metadata must say: authorization: Bearer <token>"),
        ((("authorization", good), ("authorization", bad)), "exactly one token is needed"),
        ((("token", tokens.issued["alice"]),), "a token is needed"),
    ]
    for metadata, words in shown:
        code, text = call(guarded.control, method, metadata)
        assert code == "UNAUTHENTICATED"
        assert text.startswith(words)
    status = alice.status()
    assert status.refused_scripts == before + len(shown)
    assert (status.draining, status.workers[0].incarnation) == (False, 1)


def test_with_a_token_everything_is_as_it_was(
    guarded: RunningCoordinator, alice: Connection[Any], devices: Devices
) -> None:
    devices.join(guarded.listen, 3)
    cohort = alice.get_participants(3, timeout=PATIENCE)
    assert len(cohort.run(instruction("echo"), timeout=PATIENCE).results) == 3
    devices.clear()


def test_what_comes_without_a_token_is_not_read(guarded: RunningCoordinator, alice: Connection[Any]) -> None:
    process = psutil.Process(guarded.pid)
    before = process.memory_info().rss
    for _ in range(3):
        code, _ = call(guarded.control, "GetStatus", (), message=bytes(200 * 2**20))
        assert code == "UNAUTHENTICATED"
    assert process.memory_info().rss - before < 50 * 2**20


def test_refusals_are_few_lines_and_show_no_token(guarded: RunningCoordinator, tokens: Tokens) -> None:
    for _ in range(100):
        call(guarded.control, "GetStatus", (("authorization", "Bearer not-for-the-log"),))
    lines = [each["event"] for each in guarded.records() if "at the control address" in each["event"]]
    assert 0 < len(lines) < 20
    assert lines[0].startswith("refused 127.0.0.1:")
    shown = [guarded.output, *psutil.Process(guarded.pid).cmdline()]
    for secret in ("not-for-the-log", *tokens.issued.values()):
        assert not any(secret in text for text in shown)


COMMANDS = ["status", "participants", "drain", "stop", "restart-workers"]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_without_a_token_are_refused_in_a_sentence(
    guarded: RunningCoordinator, command: str
) -> None:
    done = run("coordinator", command, f"--control={guarded.control}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Error: the coordinator at {guarded.control} refuses this command: a token is needed "
        f"(--token-file, or token=), in the call's metadata: authorization: Bearer <token>; "
        f"show a valid token with --token-file (`coordinator tokens issue` makes them)\n"
    )


def test_commands_take_a_token_from_a_file(
    guarded: RunningCoordinator, tokens: Tokens, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(tokens.issued["bob"] + "\n")
    address = f"--control={guarded.control}"
    done = run("coordinator", "status", address, "--json", f"--token-file={tmp_path / 'token'}")
    assert done.returncode == 0, done.stderr
    variable = {"MUSTER_CONTROL_TOKEN_FILE": str(tmp_path / "token")}
    done = run("coordinator", "participants", address, environment=variable)
    assert (done.returncode, done.stdout) == (0, "no participants are connected\n")
    done = run("coordinator", "status", address, f"--token-file={tmp_path / 'nowhere'}")
    assert done.returncode == 2
    assert "can't read the token in" in done.stderr


def test_no_proxy_stands_between_a_script_and_its_own_machine(
    guarded: RunningCoordinator, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hear the token."""
    (tmp_path / "token").write_text(tokens.issued["alice"])
    asked = ["coordinator", "status", f"--control={guarded.control}", f"--token-file={tmp_path / 'token'}"]
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        with connect(guarded.control, token=tokens.issued["alice"]) as connection:
            assert connection.status().workers
        done = run(*asked)
        assert done.returncode == 0, done.stderr
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


def test_a_script_without_a_token_is_told_so_at_once(guarded: RunningCoordinator) -> None:
    began_at = time.monotonic()
    with pytest.raises(CredentialsError, match="refuses this script: a token is needed"):
        connect(guarded.control, timeout=60)
    with pytest.raises(CredentialsError, match=INVALID):
        connect(guarded.control, timeout=60, token="muster_wrong")  # noqa: S106

    async def attach() -> None:
        async with aio.connect(guarded.control, timeout=60, token="muster_wrong"):  # noqa: S106
            pass

    with pytest.raises(CredentialsError, match=INVALID):
        asyncio.run(attach())
    assert time.monotonic() - began_at < 60


def test_a_script_whose_token_is_revoked_is_sent_away_and_frees_what_it_had(
    tmp_path: Path, devices: Devices
) -> None:
    tokens = issued(tmp_path / "scripts")
    options = ("--workers=1", f"--control-tokens={tokens.file}")
    with start_coordinator(tmp_path / "log", *options) as coordinator:
        devices.join(coordinator.listen, 2)
        with (
            connect(coordinator.control, token=tokens.issued["alice"]) as stays,
            connect(coordinator.control, token=tokens.issued["bob"]) as goes,
        ):
            lease = goes.lease(2, timeout=PATIENCE)
            assert stays.status().leased == 2
            tokens.revoke("bob")
            eventually(lambda: stays.status().leased == 0, what="an end of bob's lease")
            with pytest.raises(CredentialsError, match=f"refuses this script: {INVALID}"):
                eventually(lambda: goes.get_participants(1, timeout=PATIENCE) and None)
            lease.release()
            eventually(lambda: stays.status().attached == 1)
            assert stays.status().refused_scripts == 1
            cohort = stays.get_participants(2, timeout=PATIENCE)
            assert len(cohort.run(instruction("echo"), timeout=PATIENCE).results) == 2
        with pytest.raises(CredentialsError, match=INVALID):
            connect(coordinator.control, token=tokens.issued["bob"])
        tokens.issue("carol")

        def carol() -> bool:
            with contextlib.suppress(CredentialsError):
                connect(coordinator.control, token=tokens.issued["carol"]).close()
                return True
            return False

        eventually(carol, what="a new token that is known")
        assert "the token of bob has been revoked" in coordinator.output


def test_tokens_that_can_not_be_read_are_a_sentence_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("alice\n")
    options = ["--listen=127.0.0.1:0", "--control=127.0.0.1:0"]
    done = run("coordinator", "start", *options, f"--control-tokens={tmp_path / 'tokens'}")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: {tmp_path / 'tokens'} is no file of tokens: line 1")


# A Unix socket


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "100%25.sock"  # a name that nobody may decode


def test_a_unix_socket_is_this_users_alone_and_serves_like_any_address(
    tmp_path: Path, path: Path, devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0)
    try:
        with start_coordinator(tmp_path / "log", "--workers=1", f"--control=unix:{path}") as coordinator:
            assert coordinator.control == f"unix:{path}"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            devices.join(coordinator.listen, 2)
            monkeypatch.chdir(tmp_path)
            with connect(f"unix:{path.name}") as connection:
                cohort = connection.get_participants(2, timeout=PATIENCE)
                assert len(cohort.run(instruction("echo", bytes(2**20)), timeout=PATIENCE).results) == 2
            for command in ("status", "participants"):
                done = run("coordinator", command, f"--control=unix:{path}")
                assert done.returncode == 0, done.stderr
            done = run("coordinator", "stop", environment={"MUSTER_CONTROL": f"unix:{path}"})
            assert done.stdout.startswith(
                f"the coordinator at unix:{path} (pid {coordinator.pid}) has stopped"
            )
            assert coordinator.wait() == 0
    finally:
        os.umask(before)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["log"], "nothing is left"
    done = run("coordinator", "status", f"--control=unix:{path}")
    assert done.stderr == (
        f"Error: no coordinator answers at unix:{path}, where there is no socket; is `coordinator start` "
        f"running?\n"
    )
    with pytest.raises(CoordinatorGone, match=f"no coordinator answers at unix:{path}"):
        connect(f"unix:{path}", timeout=0.1)


def test_the_socket_of_one_that_lives_is_refused_and_that_of_one_that_was_killed_taken_over(
    tmp_path: Path, path: Path
) -> None:
    options = ["--workers=1", f"--control=unix:{path}"]
    with start_coordinator(tmp_path / "first.log", *options) as first:
        done = run("coordinator", "start", "--listen=127.0.0.1:0", *options)
        assert done.returncode == 1
        assert done.stderr == (
            f"Error: another coordinator listens at unix:{path}; stop it, or take another path\n"
        )
        assert first.status()["pid"] == first.pid
        workers = first.children()
        kill(first)
        assert path.is_socket()
        with start_coordinator(tmp_path / "second.log", *options, f"--listen={first.listen}") as second:
            assert second.status()["pid"] == second.pid
            assert [each["pid"] for each in second.status()["workers"]] == [each.pid for each in workers]
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


def test_an_embedded_coordinator_may_have_one(path: Path) -> None:
    with Coordinator(
        workers=1, listen="127.0.0.1:0", control=f"unix:{path}", log_level="warning"
    ) as coordinator:
        assert coordinator.control == f"unix:{path}"
        with connect(coordinator.control) as connection:
            assert connection.status().control == f"unix:{path}"
    assert not path.exists()
    path.mkdir()
    with pytest.raises(StartError, match="there is something else than a socket"):
        Coordinator(workers=1, listen="127.0.0.1:0", control=f"unix:{path}").start()


def test_tokens_may_be_asked_for_there_too(tmp_path: Path, path: Path) -> None:
    tokens = issued(tmp_path / "scripts")
    options = ("--workers=1", f"--control=unix:{path}", f"--control-tokens={tokens.file}")
    with start_coordinator(tmp_path / "log", *options) as coordinator:
        with pytest.raises(CredentialsError, match="a token is needed"):
            connect(coordinator.control)
        with connect(coordinator.control, token=tokens.issued["alice"]) as connection:
            assert connection.status().refused_scripts == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_can_not_connect(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="m-", dir="/tmp") as directory:  # short, for a socket's path
        shared = Path(directory)
        shared.chmod(0o1777)
        address = f"unix:{shared / 'c.sock'}"
        with start_coordinator(tmp_path / "log", "--workers=1", f"--control={address}") as coordinator:
            program = (
                "import os, socket; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
                f"socket.socket(socket.AF_UNIX).connect({str(shared / 'c.sock')!r})"
            )
            done = subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=PATIENCE
            )
            assert "PermissionError" in done.stderr
            assert coordinator.status()["pid"] == coordinator.pid


# Other machines


def test_for_other_machines_it_needs_tls_and_tokens(tmp_path: Path, authority: Authority) -> None:
    tokens, server = issued(tmp_path / "scripts"), authority.server()
    with_tokens = f"--control-tokens={tokens.file}"
    for options in ([], [with_tokens], server.options, ["--insecure"], ["--insecure", with_tokens]):
        done = run("coordinator", "start", "--listen=127.0.0.1:0", "--control=0.0.0.0:0", *options)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith(
            "Error: --control 0.0.0.0:0 lets other machines control the coordinator: that needs --tls-cert"
        )


def test_participants_tokens_are_not_those_of_scripts(tmp_path: Path) -> None:
    tokens = issued(tmp_path / "scripts")
    done = run("coordinator", "start", f"--tokens={tokens.file}", f"--control-tokens={tokens.file}")
    assert done.returncode == 2
    assert "participants could control the coordinator" in done.stderr


class Public:
    """A coordinator that other machines can control, reached by way of this one."""

    def __init__(
        self, coordinator: RunningCoordinator, authority: Authority, tokens: Tokens, server: Pair
    ) -> None:
        self.coordinator = coordinator
        self.authority = authority
        self.tokens = tokens
        self.server = server
        self.port = int(coordinator.control.rpartition(":")[2])
        self.address = f"localhost:{self.port}"

    def attach(self, *, tls: TLS | bool | None = None, **options: Any) -> Connection[Any]:
        tls = TLS(ca=self.authority.file) if tls is None else tls or None
        return connect(self.address, **{"tls": tls, "token": self.tokens.issued["alice"], **options})


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Public]:
    directory = tmp_path_factory.mktemp("public")
    authority, tokens = Authority(directory), issued(directory / "scripts")
    server = authority.server()
    options = ["--workers=1", "--control=0.0.0.0:0", f"--control-tokens={tokens.file}", *server.options]
    # Participants need certificates here; scripts don't, for they have tokens.
    with start_coordinator(directory / "log", *options, f"--tls-client-ca={authority.file}") as coordinator:
        yield Public(coordinator, authority, tokens, server)


@needs_a_network
def test_connections_that_say_nothing_keep_nobody_out(tmp_path: Path, authority: Authority) -> None:
    """As many as there may be, and from one address."""
    tokens = issued(tmp_path / "scripts")
    options = ["--workers=1", "--control=0.0.0.0:0", f"--control-tokens={tokens.file}"]
    with (
        start_coordinator(tmp_path / "log", *options, *authority.server().options) as coordinator,
        contextlib.ExitStack() as strangers,
    ):
        port = int(coordinator.control.rpartition(":")[2])
        for _ in range(Settings().max_scripts + VISITORS):
            strangers.enter_context(socket.create_connection((elsewhere(), port), PATIENCE))
        access: dict[str, Any] = {"tls": TLS(ca=authority.file), "token": tokens.issued["alice"]}
        with connect(f"localhost:{port}", timeout=PATIENCE, **access) as connection:
            eventually(lambda: connection.status().refused["connections_per_address"] >= 200)
        assert "connections to the control address: one address has more" in coordinator.output


def test_scripts_attach_with_tls_and_a_token(public: Public) -> None:
    with public.attach() as connection:
        assert connection.status().control == f"0.0.0.0:{public.port}"

    async def attach() -> int:
        tls = TLS(ca=public.authority.file)
        async with aio.connect(public.address, tls=tls, token=public.tokens.issued["bob"]) as connection:
            return (await connection.status()).pid

    assert asyncio.run(attach()) == public.coordinator.pid
    with pytest.raises(CredentialsError, match="refuses this script: a token is needed"):
        public.attach(token=None)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("plaintext", "the server speaks TLS, and this client plaintext; connect with TLS"),
        ("the system's authorities", "the server's certificate is of no CA that the system trusts"),
        ("another authority", "the server's certificate is of no CA that is in"),
    ],
)
def test_where_tls_fails_it_is_said_why_and_at_once(
    public: Public, tmp_path: Path, how: str, words: str
) -> None:
    other = Authority(tmp_path, "other").file
    tls: dict[str, TLS | bool] = {
        "plaintext": False,
        "the system's authorities": True,
        "another authority": TLS(ca=other),
    }
    began_at = time.monotonic()
    with pytest.raises(
        CredentialsError, match=f"can't attach to the coordinator at {public.address}: {words}"
    ):
        public.attach(tls=tls[how], timeout=60)
    assert time.monotonic() - began_at < 60


def test_commands_reach_it_with_tls_and_a_token(public: Public, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(public.tokens.issued["alice"])
    address, ca = f"--control={public.address}", f"--ca={public.authority.file}"
    token = f"--token-file={tmp_path / 'token'}"
    done = run("coordinator", "status", address, ca, token)
    assert done.returncode == 0, done.stderr
    variables = {
        "MUSTER_CONTROL": public.address,
        "MUSTER_CONTROL_CA": public.authority.file,
        "MUSTER_CONTROL_TOKEN_FILE": str(tmp_path / "token"),
        "MUSTER_CA": "/a/participants",
        "MUSTER_TOKEN_FILE": "/a/participants",
    }
    done = run("coordinator", "participants", environment=variables)
    assert (done.returncode, done.stdout) == (0, "no participants are connected\n")
    for options, words in (
        ([ca], "refuses this command: a token is needed"),
        (
            ["--tls", token],
            f"can't connect to the coordinator at {public.address}: the server's certificate is",
        ),
        ([], f"can't connect to the coordinator at {public.address}: the server speaks TLS"),
    ):
        done = run("coordinator", "status", address, *options)
        assert done.returncode == 1
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
    done = run("coordinator", "status", "--control=10.0.0.1:1", token)
    assert done.returncode == 2
    assert "the token won't go to 10.0.0.1:1 in plaintext" in done.stderr


def test_a_coordinator_without_tls_is_said_to_have_none(
    guarded: RunningCoordinator, authority: Authority
) -> None:
    text = "the server doesn't speak TLS, as no control address on loopback does; leave out"
    with pytest.raises(CredentialsError, match=text):
        connect(guarded.control, tls=TLS(ca=authority.file), timeout=60)
    done = run("coordinator", "status", f"--control={guarded.control}", f"--ca={authority.file}")
    assert done.returncode == 1
    assert text in done.stderr


def test_who_takes_the_participants_address_for_it_is_told_so(tmp_path: Path, authority: Authority) -> None:
    options = ["--workers=1", *authority.server().options, f"--tls-client-ca={authority.file}"]
    with start_coordinator(tmp_path / "log", *options) as coordinator:
        done = run("coordinator", "status", f"--control={coordinator.listen}", f"--ca={authority.file}")
        assert "most likely that is where participants connect" in done.stderr


def test_a_renewed_certificate_is_shown_and_nobody_is_cut_off(public: Public) -> None:
    def shown() -> bytes:
        import ssl

        context = ssl.create_default_context(cafile=public.authority.file)
        with (
            socket.create_connection(("127.0.0.1", public.port), timeout=PATIENCE) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as wrapped,
        ):
            return wrapped.getpeercert(binary_form=True) or b""

    with public.attach() as connection:
        before = shown()
        public.server.replace(public.authority.server())
        eventually(lambda: shown() != before, what="the new certificate")
        assert connection.status().pid == public.coordinator.pid
    public.attach().close()


def test_noise_on_its_port_disturbs_nobody(public: Public) -> None:
    with public.attach() as connection, contextlib.ExitStack() as stack:
        for request in [
            b"GET / HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            os.urandom(5_000),
            b"",
        ] * 10:
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", public.port)))
            with contextlib.suppress(ConnectionError):
                raw.sendall(request)
        assert connection.status().pid == public.coordinator.pid
