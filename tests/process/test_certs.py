"""What ``coordinator certs`` prints, tried: a cluster with mutual TLS and a link over TCP."""

from __future__ import annotations

import re
import shlex
from contextlib import ExitStack
from pathlib import Path

import pytest

from coordinator import connect
from coordinator.commands.certs import link_options, make, participant_command, start_command
from protos.messages import instruction
from tests.process.running import BIN, Process, command, run, start_coordinator
from tests.support import PATIENCE, eventually
from tests.test_layout import ROOT


def test_the_commands_that_it_prints_make_a_cluster(tmp_path: Path) -> None:
    printed = command(
        "coordinator", "certs", f"--dir={tmp_path / 'certs'}", "--participant=site-0", "--participant=site-1"
    )
    certs = make(tmp_path / "certs")
    # But for the ports: these are the test's own.
    start = shlex.split(start_command(certs).replace(":50051", ":0"))[2:]
    link = shlex.split(link_options(certs).replace(":5555", ":0"))
    assert all(line in printed for line in (start_command(certs), link_options(certs)))
    with (
        start_coordinator(tmp_path / "log", "--workers=2", *start, *link) as coordinator,
        ExitStack() as stack,
    ):
        port = coordinator.listen.rpartition(":")[2]
        for number, name in enumerate(certs.participants):
            line = participant_command(certs, name)
            assert line in printed
            _, *arguments = shlex.split(line.replace(":50051", f":{port}"))
            app = "--app=tests.process.echo_app:participants"
            arguments = [app if each.startswith("--app=") else each for each in arguments]
            process = Process(
                [str(BIN / "participant"), *arguments],
                tmp_path / f"{name}.log",
                {"ECHO_PREFIX": "site", "ECHO_COUNT": "1", "MUSTER_ID": f"site-{number}"},
            )
            stack.callback(process.end)
        eventually(lambda: coordinator.status()["participants"] == 2, 3 * PATIENCE, "both participants")
        with connect(coordinator.control) as connection:
            cohort = connection.get_participants(2, timeout=PATIENCE)
            assert sorted(each.id for each in cohort) == ["site-0", "site-1"]
            assert len(cohort.run(instruction("echo", config={"number": 1}), timeout=PATIENCE).results) == 2


def test_the_commands_of_the_readme_work_in_the_order_in_which_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the ports, which are the test's own, and the server's name, which is nobody's."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## On a network\n")[2]
    lines = re.findall(r"^coordinator .+", text, flags=re.M)
    assert len(lines) == 8
    control = ""
    with ExitStack() as stack:
        for number, line in enumerate(lines):
            line = re.sub(r"0\.0\.0\.0:\d+", "0.0.0.0:0", line).replace("fl.example.org:50050", control)
            words = shlex.split(line, comments=True)
            if words[1] == "start":
                running = stack.enter_context(start_coordinator(tmp_path / f"{number}.log", *words[2:]))
                control = f"localhost:{running.control.rpartition(':')[2]}"
            else:
                command(*words)


def test_who_can_not_be_kept_in_a_place_is_told_so(tmp_path: Path) -> None:
    place = tmp_path / "certs"
    place.mkdir(mode=0o755)
    done = run("coordinator", "certs", f"--dir={place}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Error: can't keep keys in {place}: others can enter it; chmod 700 it, or take another\n"
    )
