"""The ``coordinator`` command up to where a coordinator would start: options, files, variables, errors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from coordinator.commands import cli, remote
from coordinator.settings import DEFAULT_CONTROL, DEFAULT_LISTEN, Settings, default_workers
from manager import Security
from manager import cli as manager_cli
from manager.errors import AddressInUse, StartError
from manager.listen import CAN_SHARE_PORT, Address
from participant_sdk import cli as participant_cli


class Started:
    """What would have been started."""

    def __init__(self) -> None:
        self.settings: list[Settings] = []

    def run(self, *arguments: str, **variables: str) -> Result:
        return CliRunner(env=variables).invoke(cli.main, ["start", *arguments])

    def accept(self, *arguments: str, **variables: str) -> Settings:
        """Runs the command and returns the settings it arrived at."""
        result = self.run(*arguments, **variables)
        assert result.exit_code == 0, result.output
        return self.settings.pop()

    def refuse(self, *arguments: str, **variables: str) -> str:
        """Runs the command, which must end as a usage error; returns the last line."""
        result = self.run(*arguments, **variables)
        assert result.exit_code == 2, (result.output, result.exception)
        assert self.settings == []
        line: str = result.output.strip().splitlines()[-1]
        assert line.startswith("Error: ")
        return line


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    recorder = Started()
    for name in [name for name in os.environ if name.startswith("MUSTER_")]:
        monkeypatch.delenv(name)

    async def serve(settings: Settings, **_live: bool) -> None:
        recorder.settings.append(settings)

    def configure(*_arguments: Any) -> None:
        """Leaves logging as pytest has set it up."""

    monkeypatch.setattr("coordinator.commands.foreground.serve", serve)
    monkeypatch.setattr(cli, "configure", configure)
    yield recorder
    assert recorder.settings == []


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "muster.toml"


# Options


def test_the_defaults_are_those_of_the_settings(started: Started) -> None:
    settings = started.accept()
    assert settings == Settings(control=Address.parse(DEFAULT_CONTROL))
    assert settings.workers == default_workers()
    assert settings.listen == Address.parse(DEFAULT_LISTEN)
    assert settings.share_port == CAN_SHARE_PORT


def test_options_arrive(started: Started, tmp_path: Path) -> None:
    settings = started.accept(
        "--workers=8",
        "--listen=[::1]:1",
        "--control=localhost:2",
        "--link=tcp://127.0.0.1:3",
        f"--link-keys={tmp_path}",
        "--own-ports",
        "--pin",
        "--grace=1.5",
        f"--run-dir={tmp_path}",
        "--reducer=rounds:Median",
        "--reducer=rounds:Trimmed",
        "--log-level=debug",
        "--log-format=json",
    )
    assert settings == Settings(
        workers=8,
        listen=Address("::1", 1),
        control=Address("localhost", 2),
        link="tcp://127.0.0.1:3",
        link_keys=tmp_path,
        share_port=False,
        pin=True,
        grace=1.5,
        run_dir=tmp_path,
        reducers=("rounds:Median", "rounds:Trimmed"),
        log_level="debug",
        log_format="json",
    )


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--workers=0", "x>=1"),
        ("--workers=many", "Invalid value for '--workers': 'many' is not a valid integer."),
        ("--grace=long", "Invalid value for '--grace': 'long' is not a valid number."),
        ("--listen=localhost", "write host:port"),
        ("--listen=::1:50051", "in brackets"),
        ("--listen=localhost:65536", "0 to 65535"),
        ("--control=", "write host:port"),
        ("--link=udp://127.0.0.1:1", "ipc or tcp://host:port"),
        ("--link=tcp://10.0.0.1:1", "`coordinator certs` makes them"),
        ("--link-keys=/nowhere", "does not exist"),
        ("--link-keys=/", "--link-keys are for a link over tcp"),
        ("--link=tcp://127.0.0.1", "write host:port"),
        ("--grace=-1", "x>=0"),
        ("--grace=nan", "nan"),
        ("--log-level=loud", "'debug', 'info'"),
        ("--log-format=xml", "'console', 'json'"),
        ("--config=/nowhere/muster.toml", "does not exist"),
        ("--wrokers=2", "No such option"),
        ("now", "unexpected extra argument"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(started: Started, argument: str, words: str) -> None:
    assert words in started.refuse(argument)


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "--control=nowhere"],
        ["participants", "--control=:1"],
        ["participants", "--where=region"],
        ["participants", "--where==eu"],
        ["stat"],
    ],
)
def test_the_other_commands_are_as_strict(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 2
    assert "Error: " in result.output


def test_a_condition_may_have_an_equals_sign_in_its_value() -> None:
    assert remote.Pairs().convert("a=b=c", None, None) == ("a", "b=c")
    assert remote.Pairs().convert("a=", None, None) == ("a", "")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """What the options of security name; the files exist, and nothing is in them."""
    found = {name: str(tmp_path / name) for name in ("tls_cert", "tls_key", "tls_client_ca", "tokens")}
    for file in found.values():
        Path(file).touch()
    return found


def test_files_of_certificates_and_tokens_arrive_however_they_are_named(
    started: Started, files: dict[str, str], config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {name.replace("_", "-"): file for name, file in files.items()}
    config.write_text("".join(f'{name} = "{file}"\n' for name, file in options.items()) + "insecure = true\n")
    monkeypatch.chdir(tmp_path)
    for settings in (
        started.accept(*(f"--{name}={file}" for name, file in options.items()), "--insecure"),
        started.accept(
            **{f"MUSTER_{name.upper()}": file for name, file in files.items()}, MUSTER_INSECURE="1"
        ),
        started.accept(f"--config={config}"),
        started.accept(*(f"--{name}={Path(file).name}" for name, file in options.items()), "--insecure"),
    ):
        assert settings.security == Security(**files, insecure=True)


def test_plaintext_for_everybody_has_to_be_asked_for(started: Started, files: dict[str, str]) -> None:
    assert "without encryption" in started.refuse("--listen=0.0.0.0:1")
    assert "tokens would travel" in started.refuse("--listen=0.0.0.0:1", f"--tokens={files['tokens']}")
    assert started.accept("--listen=0.0.0.0:1", "--insecure").security == Security(insecure=True)
    started.accept("--listen=0.0.0.0:1", f"--tls-cert={files['tls_cert']}", f"--tls-key={files['tls_key']}")


# Variables


def test_every_option_can_be_a_variable(started: Started, tmp_path: Path) -> None:
    settings = started.accept(
        MUSTER_WORKERS="3",
        MUSTER_LISTEN="localhost:1",
        MUSTER_CONTROL="localhost:2",
        MUSTER_LINK="tcp://127.0.0.1:3",
        MUSTER_LINK_KEYS=str(tmp_path),
        MUSTER_SHARE_PORT="0",
        MUSTER_PIN="1",
        MUSTER_GRACE="4",
        MUSTER_REDUCER="rounds:Median rounds:Trimmed",
        MUSTER_LOG_LEVEL="error",
        MUSTER_LOG_FORMAT="json",
    )
    assert (settings.workers, settings.grace, settings.share_port, settings.pin) == (3, 4.0, False, True)
    assert (settings.listen, settings.control) == (Address("localhost", 1), Address("localhost", 2))
    assert (settings.link, settings.link_keys) == ("tcp://127.0.0.1:3", tmp_path)
    assert settings.log_level == "error"
    assert settings.reducers == ("rounds:Median", "rounds:Trimmed")


@pytest.mark.parametrize("command", ["start", "status", "participants"])
def test_the_help_names_the_variable_of_every_option_for_settings(command: str) -> None:
    output = CliRunner().invoke(cli.main, [command, "--help"]).output
    assert "MUSTER_CONTROL" in output


def test_a_bad_variable_is_a_usage_error_that_names_it(started: Started) -> None:
    assert "MUSTER_WORKERS" in started.refuse(MUSTER_WORKERS="many")
    assert "MUSTER_LISTEN" in started.refuse(MUSTER_LISTEN="localhost")


# The file


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('workers = "two"', "workers in {}: 'two' is not a valid integer."),
        ("log_level = 'loud'", "log-level in {}: 'loud' is not one of"),
        ('listen = "x"', "listen in {}: 'x' is not an address"),
    ],
)
def test_a_bad_value_in_a_file_is_a_usage_error_that_names_it(
    started: Started, config: Path, text: str, words: str
) -> None:
    config.write_text(text)
    line = started.refuse(f"--config={config}")
    assert line.startswith(f"Error: Invalid value for {words.format(config)}")
    assert "MUSTER_" not in line


def test_a_file_sets_options(started: Started, config: Path) -> None:
    config.write_text('workers = 5\nlisten = "localhost:1"\nlog-level = "error"\npin = true\ngrace = 2\n')
    settings = started.accept(f"--config={config}")
    assert (settings.workers, settings.pin, settings.grace, settings.log_level) == (5, True, 2.0, "error")
    assert settings.listen == Address("localhost", 1)
    assert started.accept(MUSTER_CONFIG=str(config)) == settings


def test_a_file_may_list_what_may_be_given_several_times(started: Started, config: Path) -> None:
    config.write_text('reducer = ["rounds:Median", "rounds:Trimmed"]')
    assert started.accept(f"--config={config}").reducers == ("rounds:Median", "rounds:Trimmed")
    assert started.accept(f"--config={config}", "--reducer=other:One").reducers == ("other:One",)
    config.write_text("reducer = []")
    assert started.accept(f"--config={config}").reducers == ()


def test_the_command_line_beats_variables_beat_the_file(started: Started, config: Path) -> None:
    config.write_text("workers = 5")
    assert started.accept(f"--config={config}").workers == 5
    assert started.accept(f"--config={config}", MUSTER_WORKERS="6").workers == 6
    assert started.accept(f"--config={config}", "--workers=7", MUSTER_WORKERS="6").workers == 7


def test_the_order_of_arguments_makes_no_difference(started: Started, config: Path) -> None:
    config.write_text("workers = 5")
    assert started.accept("--grace=1", f"--config={config}").workers == 5


def test_an_unknown_setting_is_named_with_those_there_are(started: Started, config: Path) -> None:
    config.write_text("wrokers = 5\nworkers = 5")
    line = started.refuse(f"--config={config}")
    assert "unknown setting wrokers" in line
    assert "tls_key, tokens, upload_disk, upload_memory, workers" in line


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("workers = ", id="no value"),
        pytest.param("workers = 1\nworkers = 2", id="twice"),
        pytest.param("[coordinator]\nworkers = 1", id="in a table"),
        pytest.param('config = "other.toml"', id="another file"),
        pytest.param("help = true", id="help"),
        pytest.param('workers = "many"', id="text for a number"),
        pytest.param("workers = 0", id="out of range"),
        pytest.param('listen = "localhost"', id="no port"),
        pytest.param('log-level = "loud"', id="no such choice"),
        pytest.param("link = 5", id="a number for text"),
        pytest.param('pin = "perhaps"', id="neither true nor false"),
        pytest.param("grace = nan", id="not a number"),
    ],
)
def test_a_file_that_makes_no_sense_is_a_usage_error(started: Started, config: Path, text: str) -> None:
    config.write_text(text)
    started.refuse(f"--config={config}")


@pytest.mark.parametrize(
    "text",
    [
        "workers = 8.5",
        "workers = true",
        "workers = [1, 2]",
        "listen = 50051",
        "listen = 1979-05-27",
        "pin = 3",
        "share-port = 7",
        "grace = [1]",
        "grace = true",
        "run-dir = [1]",
        'listen = ["localhost:1"]',
        "pin = [true]",
        'log-level = ["error"]',
        'reducers = "rounds:Median"',
        "reducers = 1",
        "reducers = { rounds = 1 }",
    ],
)
def test_a_value_of_another_type_is_a_usage_error(started: Started, config: Path, text: str) -> None:
    config.write_text(text)
    try:
        started.refuse(f"--config={config}")
    finally:
        started.settings.clear()


def test_a_file_that_is_no_text_is_a_usage_error(started: Started, config: Path) -> None:
    config.write_bytes(b"\xff\xfe\x00")
    assert "can't read" in started.refuse(f"--config={config}")


# Errors, help, version


def test_what_can_not_be_started_ends_with_code_1_and_a_sentence(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def serve(_settings: Settings, **_live: bool) -> None:
        raise StartError("the port is taken")

    monkeypatch.setattr("coordinator.commands.foreground.serve", serve)
    result = started.run()
    assert result.exit_code == 1
    assert result.output.strip().endswith("Error: the port is taken")


@pytest.mark.parametrize(
    ("address", "option"), [("127.0.0.1:7051", "--listen"), ("127.0.0.1:7050", "--control")]
)
def test_who_has_the_address_may_be_anybody_and_the_option_for_another_is_named(
    started: Started, monkeypatch: pytest.MonkeyPatch, address: str, option: str
) -> None:
    async def serve(_settings: Settings, **_live: bool) -> None:
        raise AddressInUse(address)

    monkeypatch.setattr("coordinator.commands.foreground.serve", serve)
    said = started.run("--listen=127.0.0.1:7051", "--control=127.0.0.1:7050").output
    assert f"Error: {address} is in use: by another program, " in said
    assert said.endswith(f"; stop it, wait, or take another port with {option}\n")


def test_the_version_is_that_of_the_distribution() -> None:
    result = CliRunner().invoke(cli.main, ["--version"])
    assert result.exit_code == 0
    assert result.output == f"coordinator, version {version('muster')}\n"


@pytest.mark.parametrize("command", [None, *cli.main.commands])
def test_every_command_and_option_explains_itself(command: str | None) -> None:
    arguments = ["--help"] if command is None else [command, "--help"]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 0
    found = cli.main if command is None else cli.main.commands[command]
    assert found.help
    for parameter in found.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


@pytest.mark.parametrize("program", [cli.main, manager_cli.main])
def test_h_is_short_for_help_everywhere(program: click.Group) -> None:
    for names in [[], *(names for names, _ in commands(program))]:
        short, long = (CliRunner().invoke(program, [*names, option]) for option in ("-h", "--help"))
        assert (short.exit_code, short.output) == (0, long.output)


@pytest.mark.parametrize(
    ("program", "arguments"), [(cli.main, []), (cli.main, ["tokens"]), (manager_cli.main, [])]
)
def test_what_a_group_says_of_its_commands_is_not_cut_off(program: click.Group, arguments: list[str]) -> None:
    said = CliRunner().invoke(program, [*arguments, "--help"], terminal_width=80).output
    said = said.partition("\nCommands:\n")[2]
    assert said
    assert "..." not in said


def commands(group: click.Group, *names: str) -> Iterator[tuple[list[str], click.Command]]:
    """All that can be called, with the names by which it is."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield [*names, name], command


@pytest.mark.parametrize("program", [cli.main, manager_cli.main, participant_cli.main])
def test_no_option_takes_a_secret_and_no_help_shows_what_the_environment_says(program: click.Group) -> None:
    """What is on a command line is in ``ps``: there are only names of files."""
    told: dict[str, str] = {}
    for names, command in commands(program):
        for option in command.params:
            if any(
                word in str(option.name).split("_") for word in ("token", "tokens", "key", "keys", "cert")
            ):
                assert isinstance(option.type, click.Path | click.Tuple | type(click.BOOL)), option.name
            told |= dict.fromkeys([f"MUSTER_{option.name}".upper(), str(option.envvar)], "canary")
        result = CliRunner(env=told).invoke(program, [*names, "--help"])
        assert result.exit_code == 0, result.output
        assert "canary" not in result.output


def test_help_waits_for_no_large_library() -> None:
    program = (
        "import sys, coordinator.commands.cli\n"
        "sys.exit(any(name in sys.modules for name in ('grpc', 'zmq', 'cryptography')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=30).returncode == 0
