"""The digits example with mutual TLS and tokens: its credentials, and all of it under honcho."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from coordinator.commands import cli
from examples.digits import secure
from manager.access.tokens import parse
from tests.examples.procfile import is_png, left_running, start_procfile


@pytest.fixture
def place(environment: dict[str, str], tmp_path: Path) -> Path:
    """Where the credentials are to be; spaces are a trap for shells."""
    place = tmp_path / "of the cluster"
    environment["DIGITS_CREDENTIALS"] = str(place)
    return place


def make(place: Path) -> Result:
    return CliRunner().invoke(secure.main, ["--dir", str(place)])


def files(place: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_credentials_are_private_and_a_second_run_keeps_them(tmp_path: Path) -> None:
    place = tmp_path / "secure"

    first = make(place)
    made = files(place)
    again = make(place)

    assert (first.exit_code, again.exit_code) == (0, 0), first.output + again.output
    assert files(place) == made
    assert "hospital-5.pem" in first.output
    assert again.output == f"certificates and tokens are in {place}\n"
    secrets = [path for path in made if path.suffix in (".key", ".token") and path.parent.name != "link"]
    assert len(secrets) == 2 + 5 + 5 + 1
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in secrets)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert parse((place / "tokens.txt").read_text()).count().keys() == set(secure.HOSPITALS)
    assert parse((place / "scripts.txt").read_text()).count().keys() == {secure.SCRIPT}


def test_a_hospital_that_has_come_later_gets_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "secure")
    before = files(tmp_path / "secure")
    monkeypatch.setattr(secure, "HOSPITALS", [*secure.HOSPITALS, "hospital-6"])

    assert make(tmp_path / "secure").exit_code == 0

    after = files(tmp_path / "secure")
    new = {path.name for path in after.keys() - before.keys()}
    assert new == {"hospital-6.pem", "hospital-6.key", "hospital-6.token"}


def test_a_token_that_has_been_revoked_is_replaced(tmp_path: Path) -> None:
    place = tmp_path / "secure"
    make(place)
    before = files(place)
    revoke = ["tokens", "revoke", "hospital-3", "--file", str(place / "tokens.txt")]
    assert CliRunner().invoke(cli.main, revoke).exit_code == 0

    assert make(place).exit_code == 0

    after = files(place)
    assert {path.name for path in after if after[path] != before[path]} == {"tokens.txt", "hospital-3.token"}
    token = (place / "participants" / "hospital-3.token").read_text().strip()
    found = parse((place / "tokens.txt").read_text()).find(token)
    assert found is not None
    assert found.name == "hospital-3"


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)

    refused = make(tmp_path / "open")

    assert refused.exit_code == 1
    assert refused.output.startswith("Error: can't keep keys in ")


def test_the_secure_procfile_trains_a_model_and_ends_by_itself(
    environment: dict[str, str], place: Path, tmp_path: Path
) -> None:
    make(place)

    code, shown = start_procfile("Procfile.secure", {**environment, "DIGITS_ROUNDS": "3"}, tmp_path / "log")

    assert code == 0, shown
    lines = re.findall(r"round (\d+)  accuracy (0\.\d{3})  5 of 5 answered", shown)
    assert [number for number, _ in lines] == ["1", "2", "3"], shown
    assert float(lines[-1][1]) > 0.85
    # Five connections may well end up at one worker: the kernel spreads them.
    assert re.search(r"5 participants are here, on [12] workers, with 1437 examples", shown), shown
    assert "Traceback" not in shown
    assert is_png(tmp_path / "accuracy.png")
    assert left_running(environment) == []


def test_a_hospital_needs_its_certificate_and_its_token(
    environment: dict[str, str], place: Path, tmp_path: Path
) -> None:
    make(place)
    hospitals = place / "participants"
    for kind in ("pem", "key"):
        (hospitals / f"hospital-2.{kind}").replace(hospitals / f"hospital-3.{kind}")
    make(place)

    of_it = ("coordinator", "hospital-3")
    code, shown = start_procfile("Procfile.secure", environment, tmp_path / "log", *of_it)

    assert code == 1, shown
    assert re.search(
        r"hospital-3\.1 +\| Error: .*the token is that of hospital-3 and the certificate that of hospital-2",
        shown,
    ), shown
    assert left_running(environment) == []


def test_the_training_script_needs_its_token(
    environment: dict[str, str], place: Path, tmp_path: Path
) -> None:
    make(place)
    revoke = ["tokens", "revoke", secure.SCRIPT, "--file", str(place / "scripts.txt")]
    assert CliRunner().invoke(cli.main, revoke).exit_code == 0

    of_it = ("coordinator", "training")
    code, shown = start_procfile("Procfile.secure", environment, tmp_path / "log", *of_it)

    assert code == 1, shown
    assert re.search(r"training\.1 +\| Error: .*the token is not valid here", shown), shown
    assert left_running(environment) == []
