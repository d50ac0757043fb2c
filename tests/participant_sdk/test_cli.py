"""The command: its words for mistakes, its options and variables, and how its process ends."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result

from participant_sdk import cli
from protos import messages
from protos.messages import result
from tests.certificates import Authority, server_credentials
from tests.participant_sdk.support import PATIENCE, Peer, ScriptedCoordinator

ROOT = Path(__file__).parents[2]

APP = """
import threading
from participant_sdk import Participant, Result

participant = Participant("from-app", {"region": "eu", "kind": "test"})

@participant.on("ping")
def ping(instruction):
    return Result(status="pong")

@participant.on("stick")
def stick(instruction):
    print("stuck", flush=True)
    threading.Event().wait()

several = [Participant(str(number)) for number in range(3)]
twice = [participant, participant]
namesakes = [Participant(), Participant("a"), Participant(), Participant("a")]
nothing = []
number = 3

def factory():
    return participant

def boom():
    open("no-such-file")

def quits():
    raise SystemExit("there is no data here")

def needs(argument):
    return participant

class namespace:
    inner = participant
"""


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module ``some_app`` in the working directory."""
    (tmp_path / "some_app.py").write_text(APP)
    (tmp_path / "broken_app.py").write_text("import nothing_of_this_name\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for name in [name for name in os.environ if name.startswith("MUSTER_")]:
        monkeypatch.delenv(name)
    root = logging.getLogger()
    handlers, level = root.handlers.copy(), root.level
    yield tmp_path
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("some_app", "broken_app"):
        sys.modules.pop(name, None)


def invoke(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(cli.main, arguments, env=variables)


def start(app: str = "some_app:participant", connect: str = "127.0.0.1:1", *more: str) -> Result:
    return invoke("start", "--app", app, "--connect", connect, *more)


@pytest.mark.parametrize(
    ("app", "text"),
    [
        ("some_app", "isn't of the form module:object"),
        (":participant", "isn't of the form module:object"),
        (".some_app:participant", "isn't of the form module:object"),
        ("some_app.py:participant", "names a file, not a module; did you mean some_app:participant?"),
        ("nowhere.py:participant", "there is no module 'nowhere'"),
        ("nowhere:participant", "there is no module 'nowhere'"),
        ("nowhere.deep:participant", "there is no module 'nowhere'"),
        ("some_app.deep:participant", "there is no module 'some_app.deep'"),
        (
            "some_app:nothing_such",
            "there is no 'nothing_such' in module 'some_app'; its participants: participant",
        ),
        (
            "some_app:namespace.outer",
            "there is no 'namespace.outer' in module 'some_app'; its participants: ",
        ),
        ("json:participant", "there is no 'participant' in module 'json'"),
        ("some_app:number", "is of type int, not a participant_sdk.Participant"),
        ("some_app:needs", "can't be called without arguments: missing a required argument: 'argument'"),
        ("some_app:nothing", "is an empty list"),
        ("some_app:twice", "holds the same participant twice"),
        ("some_app:namesakes", "holds two participants with the id 'a'"),
    ],
)
def test_an_app_that_is_none_is_a_usage_error_in_one_line(app: str, text: str) -> None:
    outcome = start(app)
    assert outcome.exit_code == 2
    last = outcome.stderr.splitlines()[-1]
    assert last.startswith("Error: Invalid value for '--app': ")
    assert text in last


@pytest.mark.parametrize("address", ["nowhere", "host:0", "http://host:1"])
def test_a_bad_address_is_a_usage_error(address: str) -> None:
    outcome = start(connect=address)
    assert outcome.exit_code == 2
    assert "Error: Invalid value for '--connect'" in outcome.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--attribute", "region"], "'region' isn't of the form key=value"),
        (["--attribute", "=eu"], "'=eu' isn't of the form key=value"),
        (["--log-level", "loud"], "'loud' is not one of"),
        (["--log-format", "xml"], "'xml' is not one of"),
        (["--conect", "x"], "No such option"),
    ],
)
def test_bad_options_are_usage_errors(options: list[str], text: str) -> None:
    outcome = start("some_app:participant", "127.0.0.1:1", *options)
    assert outcome.exit_code == 2
    assert text in outcome.stderr.splitlines()[-1]


def test_what_is_missing_is_named() -> None:
    assert "Missing option '--app'" in invoke("start").stderr
    assert "Missing option '--connect'" in invoke("start", "--app", "some_app:participant").stderr


def test_one_id_can_not_name_several() -> None:
    outcome = start("some_app:several", "127.0.0.1:1", "--id", "one")
    assert outcome.exit_code == 2
    assert "one name can't do for the 3 participants" in outcome.stderr


def test_an_app_that_fails_by_itself_shows_its_own_error() -> None:
    outcome = start("broken_app:participant")
    assert outcome.exit_code == 1
    first, where, *_, error, last = outcome.stderr.splitlines()
    assert first == "Traceback (most recent call last):"
    assert "broken_app.py" in where, "nothing of what came before it"
    assert "nothing_of_this_name" in error
    assert last == "Error: --app broken_app:participant can't be imported"


def test_a_function_that_raises_shows_its_own_error() -> None:
    outcome = start("some_app:boom")
    assert outcome.exit_code == 1
    first, where, *_, last = outcome.stderr.splitlines()
    assert first == "Traceback (most recent call last):"
    assert "some_app.py" in where, "nothing of what came before it"
    wanted = "FileNotFoundError: [Errno 2] No such file or directory: 'no-such-file'"
    assert last == f"Error: --app some_app:boom raised {wanted}"


def test_an_app_may_end_the_process_with_a_sentence_of_its_own() -> None:
    with process(command("127.0.0.1:1", "some_app:quits")) as child:
        assert child.communicate(timeout=PATIENCE) == ("", "there is no data here\n")
        assert child.returncode == 1


def test_the_help_names_every_variable() -> None:
    text = invoke("start", "--help").output
    options = "APP CONNECT ID ATTRIBUTE CA TLS CERT KEY TOKEN_FILE LOG_LEVEL LOG_FORMAT"
    for name in options.split():
        assert f"MUSTER_{name}" in text.replace("\n", "").replace(" ", "")
    assert "MUSTER_START" not in text


def test_the_help_says_what_a_stop_costs() -> None:
    text = " ".join(invoke("start", "--help").output.split())
    assert "A handler at work is asked to stop and waited for, but its answer is not sent any more" in text


def test_the_version() -> None:
    assert invoke("--version").output.startswith("participant, version ")


def refusing(seen: list[tuple[str, dict[str, str]]]) -> ScriptedCoordinator:
    async def script(peer: Peer) -> None:
        hello = (await peer.receive()).hello
        seen.append((hello.participant_id, dict(hello.attributes)))
        await peer.end(grpc.StatusCode.PERMISSION_DENIED, "not you")

    return ScriptedCoordinator(*[script] * 3)


@contextmanager
def refusals() -> Iterator[tuple[str, list[tuple[str, dict[str, str]]]]]:
    seen: list[tuple[str, dict[str, str]]] = []
    coordinator = refusing(seen)
    coordinator._remaining = 0
    coordinator._all_done.set()  # how many come differs
    with coordinator:
        yield coordinator.address, seen


@pytest.mark.parametrize("app", ["some_app:participant", "some_app:factory", "some_app:namespace.inner"])
def test_a_refusal_is_one_line_and_exit_code_1(app: str) -> None:
    with refusals() as (address, seen):
        outcome = start(app, address)
    assert outcome.exit_code == 1
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("Error: ")]
    assert "refused this participant (PERMISSION_DENIED: not you)" in line
    assert seen == [("from-app", {"region": "eu", "kind": "test"})]


def test_several_refusals_are_one_line_too() -> None:
    with refusals() as (address, seen):
        outcome = start("some_app:several", address)
    assert outcome.exit_code == 1
    assert "Error: 3 of 3 participants failed; the coordinator at" in outcome.stderr
    assert sorted(name for name, _ in seen) == ["0", "1", "2"]


def test_options_add_to_the_app() -> None:
    with refusals() as (address, seen):
        attributes = ["--attribute", "region=us", "--attribute", "a=b=c"]
        start("some_app:participant", address, "--id", "mine", *attributes)
    assert seen == [("mine", {"region": "us", "kind": "test", "a": "b=c"})]


def test_every_option_is_a_variable() -> None:
    with refusals() as (address, seen):
        outcome = invoke(
            "start",
            MUSTER_APP="some_app:participant",
            MUSTER_CONNECT=address,
            MUSTER_ID="mine",
            MUSTER_ATTRIBUTE="region=us more=1",
            MUSTER_LOG_LEVEL="info",
            MUSTER_LOG_FORMAT="json",
        )
    assert seen == [("mine", {"region": "us", "kind": "test", "more": "1"})]
    entries = [json.loads(line) for line in outcome.stderr.splitlines() if line.startswith("{")]
    assert entries[0]["logger"] == "muster.participant"
    assert entries[0]["participant"] == "mine"
    assert set(entries[0]) == {"time", "level", "logger", "message", "participant"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            ["--ca", "nowhere.pem"],
            "can't read the CA certificates in 'nowhere.pem' (No such file or directory)",
        ),
        (["--ca", "some_app.py"], "there is no CA certificate in some_app.py (PEM is needed)"),
        (["--tls", "--cert", "some.pem"], "a client's certificate and its private key go together"),
        (["--key", "some.key"], "a client's certificate and its private key go together"),
        (["--token-file", "nowhere"], "can't read the token in 'nowhere' (No such file or directory)"),
        (["--token-file", "some_app.py"], "what is in some_app.py is no token"),
    ],
)
@pytest.mark.parametrize("app", ["participant", "several"])
def test_files_that_can_not_be_used_are_usage_errors(app: str, options: list[str], text: str) -> None:
    outcome = start(f"some_app:{app}", "127.0.0.1:1", *options)
    assert outcome.exit_code == 2
    last = outcome.stderr.splitlines()[-1]
    assert last.startswith("Error: 3 of 3 participants failed; " if app == "several" else "Error: ")
    assert text in last


def test_a_token_in_plaintext_is_a_usage_error(working_directory: Path) -> None:
    (working_directory / "token").write_text("muster_secret")
    outcome = start("some_app:participant", "192.0.2.1:1", "--token-file", "token")
    assert outcome.exit_code == 2
    assert "the token won't go to 192.0.2.1:1 in plaintext" in outcome.stderr.splitlines()[-1]
    assert "muster_secret" not in outcome.output


@pytest.mark.parametrize("by", ["options", "variables"])
def test_certificates_and_a_token_are_used(by: str, working_directory: Path) -> None:
    authority = Authority(working_directory / "pki")
    pair = authority.issue("edge-7.example", common_name="edge-7")
    (working_directory / "token").write_text("muster_secret\n")
    seen: list[object] = []

    async def script(peer: Peer) -> None:
        await peer.receive()
        seen.extend([peer.names, peer.metadata.get("authorization")])
        await peer.end(grpc.StatusCode.PERMISSION_DENIED, "not you")

    files = {"ca": authority.ca, "cert": pair.cert, "key": pair.key, "token-file": Path("token")}
    credentials = server_credentials(authority.issue("127.0.0.1"), client_ca=authority.ca)
    with ScriptedCoordinator(script, credentials=credentials) as coordinator:
        if by == "options":
            options = [text for name, path in files.items() for text in (f"--{name}", str(path))]
            outcome = start("some_app:participant", coordinator.address, *options)
        else:
            names = {f"MUSTER_{name.upper().replace('-', '_')}": str(path) for name, path in files.items()}
            outcome = invoke(
                "start", MUSTER_APP="some_app:participant", MUSTER_CONNECT=coordinator.address, **names
            )
    assert outcome.exit_code == 1, outcome.output
    assert seen == [["edge-7"], "Bearer muster_secret"]
    assert "muster_secret" not in outcome.output


@pytest.mark.parametrize("by", ["option", "variable"])
def test_tls_alone_trusts_whom_the_system_trusts(
    by: str, working_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(working_directory / "pki")
    monkeypatch.delenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))

    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.end(grpc.StatusCode.PERMISSION_DENIED, "not you")

    credentials = server_credentials(authority.issue("127.0.0.1"))
    with ScriptedCoordinator(script, credentials=credentials) as coordinator:
        arguments = ["start", "--app", "some_app:participant", "--connect", coordinator.address]
        outcome = invoke(*arguments, "--tls") if by == "option" else invoke(*arguments, MUSTER_TLS="1")
    assert (outcome.exit_code, "not you" in outcome.stderr) == (1, True)


# From here on: real processes.


@contextmanager
def process(arguments: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    del environment["GRPC_VERBOSITY"]  # it was set when this process imported protos
    child = subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def command(address: str, app: str = "some_app:participant") -> list[str]:
    return ["-m", "participant_sdk.cli", "start", "--app", app, "--connect", address]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("count", [1, 3], ids=["one", "several"])
def test_a_signal_leaves_cleanly(number: signal.Signals, count: int) -> None:
    answered = threading.Semaphore(0)

    async def script(peer: Peer) -> None:
        await peer.receive()
        if count == 1:
            assert await peer.ask("ping") == result(status="pong")
        answered.release()
        await peer.expect_leave()

    app = "some_app:participant" if count == 1 else "some_app:several"
    scripted = ScriptedCoordinator(*[script] * count)
    with scripted as coordinator, process(command(coordinator.address, app)) as child:
        for _ in range(count):
            assert answered.acquire(timeout=PATIENCE)
        child.send_signal(number)
        out, err = child.communicate(timeout=PATIENCE)
        assert (child.returncode, out) == (0, ""), err
        assert "Traceback" not in err


def test_a_signal_stops_the_search_for_a_coordinator() -> None:
    with process(command("127.0.0.1:1")) as child:
        assert child.stderr is not None
        assert "can't reach the coordinator at 127.0.0.1:1 (connection refused)" in child.stderr.readline()
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=PATIENCE)
        assert child.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_second_signal_does_not_wait_for_a_handler(number: signal.Signals) -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(messages.instruction("stick"))
        await peer.expect_leave()

    with ScriptedCoordinator(script) as coordinator, process(command(coordinator.address)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "stuck\n"
        child.send_signal(number)
        coordinator.wait()  # it has left, but its handler never returns
        assert child.poll() is None
        child.send_signal(number)
        _, err = child.communicate(timeout=PATIENCE)
        assert child.returncode != 0
        assert "stopping once the handler of 'stick' has returned; its answer is not sent any more" in err


@pytest.mark.parametrize(
    ("trusted", "text"),
    [
        (True, "the server's certificate is for elsewhere.example, not for 127.0.0.1"),
        (False, "the server's certificate is of no CA that is in "),
    ],
    ids=["another name", "another authority"],
)
def test_a_process_says_why_tls_fails_and_tries_again(
    trusted: bool, text: str, working_directory: Path
) -> None:
    """And gRPC, which has its own words for it, is silent."""
    authority = Authority(working_directory / "pki")
    issuer = authority if trusted else Authority(working_directory / "other")
    credentials = server_credentials(issuer.issue("elsewhere.example"))
    with (
        ScriptedCoordinator(credentials=credentials) as coordinator,
        process([*command(coordinator.address), "--ca", str(authority.ca)]) as child,
    ):
        assert child.stderr is not None
        for attempt in (1, 2):
            line = child.stderr.readline()
            assert text in line
            assert line.endswith(f"(attempt {attempt})\n")
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=PATIENCE)
        assert child.returncode == 0
        assert "Traceback" not in err


CONSUMER = """
import sys
from participant_sdk import client
from protos import stream_pb2

with client.connection(sys.argv[1]) as (consume, dispatch):
    dispatch(stream_pb2.ParticipantMessage())
    try:
        consume()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def test_ctrl_c_interrupts_consume_and_says_goodbye() -> None:
    waiting = threading.Event()

    async def script(peer: Peer) -> None:
        await peer.receive()
        waiting.set()
        await peer.expect_leave()

    with ScriptedCoordinator(script) as coordinator, process(["-c", CONSUMER, coordinator.address]) as child:
        assert waiting.wait(PATIENCE)
        # Until it is interrupted it has nothing to do but to consume; a signal that came too early would
        # have raised in dispatch(), and the goodbye wouldn't change.
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=PATIENCE)
        assert out == "interrupted\n" or "KeyboardInterrupt" in err


DAEMON = """
import sys, threading
from participant_sdk import Participant

participant = Participant()
said = threading.Event()
participant.on("ping")(lambda instruction: said.set())
threading.Thread(target=participant.run, args=(sys.argv[1],), daemon=True).start()
assert said.wait(10)
"""


def test_a_process_can_end_while_a_daemon_thread_runs_a_participant() -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(messages.instruction("ping"))
        with suppress(StopAsyncIteration):
            while True:  # whether or not it gets as far as to answer
                await peer.receive()

    with ScriptedCoordinator(script) as coordinator, process(["-c", DAEMON, coordinator.address]) as child:
        _, err = child.communicate(timeout=PATIENCE)
        assert child.returncode == 0, err
