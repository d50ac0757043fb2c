"""The run directory: where it is, whose it may be, who holds it, and what the next one finds in it."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.workers.run_dir import InUseError, Recorded, RunDir, State, default_path
from manager.errors import StartError
from manager.listen import Address
from tests.support import eventually

ASKED, LISTEN = Address("127.0.0.1", 0), Address("127.0.0.1", 50051)
WORKERS = [
    Recorded(0, 3, 4321, ("--index", "0", "--coordinator", "ipc:///somewhere/link.sock")),
    Recorded(1, 1, 0, ()),
]


@pytest.fixture
def private(tmp_path: Path) -> Path:
    return tmp_path / "muster" / "127.0.0.1-50051"


@pytest.fixture
def run_dir(private: Path) -> Iterator[RunDir]:
    run_dir = RunDir(private, private=True)
    yield run_dir
    run_dir.close(finished=True)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Where it is


def test_it_is_in_the_users_runtime_directory_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_path(LISTEN) == tmp_path / "muster" / "127.0.0.1-50051"


@pytest.mark.parametrize("runtime", ["", "/nowhere/at/all"])
def test_else_it_is_in_the_temporary_directory_under_a_name_of_the_user(
    runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    expected = Path(tempfile.gettempdir()) / f"muster-{os.getuid()}" / "127.0.0.1-50051"
    assert default_path(LISTEN) == expected


@given(host=st.text(min_size=1, max_size=300), port=st.integers(0, 65535))
def test_whatever_the_host_is_called_it_is_one_short_plain_name(host: str, port: int) -> None:
    path = default_path(Address(host, port))
    assert path.parent == default_path(LISTEN).parent, "the name of a host leads somewhere else"
    assert path.name.endswith(f"-{port}")
    assert len(os.fsencode(path.name)) <= 40 + 1 + 5, "a socket's path must be short"


def test_another_address_is_another_directory() -> None:
    assert len({default_path(Address(host, port)) for host in ("::1", "10.0.0.1") for port in (1, 2)}) == 4


# Whose it may be


def test_nobody_else_can_enter_it(private: Path) -> None:
    before = os.umask(0)
    try:
        run_dir = RunDir(private, private=True)
    finally:
        os.umask(before)
    assert mode(private) == mode(private.parent) == 0o700
    run_dir.close(finished=True)


@pytest.mark.parametrize("bits", [0o755, 0o710, 0o701, 0o770, 0o704])
def test_one_that_others_can_enter_is_refused(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "open"
    path.mkdir()
    path.chmod(bits)
    with pytest.raises(StartError, match="chmod 700"):
        RunDir(path, private=False)
    assert list(path.iterdir()) == []
    path.chmod(0o700)
    RunDir(path, private=False).close(finished=True)


def test_a_private_one_in_a_directory_that_others_can_enter_is_refused(private: Path) -> None:
    private.parent.mkdir(mode=0o755)
    with pytest.raises(StartError, match=str(private.parent)):
        RunDir(private, private=True)


def test_one_that_belongs_to_somebody_else_is_refused(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private.mkdir(mode=0o700, parents=True)
    somebody = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: somebody)
    with pytest.raises(StartError, match="somebody else"):
        RunDir(private, private=False)


def test_a_link_to_a_directory_is_refused(tmp_path: Path) -> None:
    """Whoever laid it may turn it to where they like."""
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StartError, match="somebody else"):
        RunDir(tmp_path / "link", private=False)


def test_where_there_can_be_no_directory_there_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StartError, match=r"somebody else|File exists"):
        RunDir(tmp_path / "file", private=False)
    with pytest.raises(StartError, match="Not a directory"):
        RunDir(tmp_path / "file" / "below", private=False)


# Who holds it


def test_a_second_coordinator_is_told_that_it_is_in_use(private: Path, run_dir: RunDir) -> None:
    with pytest.raises(InUseError, match=str(private)):
        RunDir(private, private=True)
    run_dir.record(WORKERS)
    assert run_dir.read().workers == tuple(WORKERS), "the one that holds it is not disturbed"


@pytest.mark.parametrize("finished", [True, False])
def test_once_it_is_closed_the_next_one_has_it(private: Path, finished: bool) -> None:
    for _ in range(3):
        RunDir(private, private=True).close(finished=finished)
    last = RunDir(private, private=True)
    with pytest.raises(InUseError):
        RunDir(private, private=True)
    last.close(finished=True)


def test_a_coordinator_that_is_killed_lets_go_of_it(private: Path) -> None:
    program = (
        "import sys, time, pathlib; from coordinator.workers.run_dir import RunDir\n"
        f"held = RunDir(pathlib.Path({str(private)!r}), private=True)\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InUseError):
            RunDir(private, private=True)
        holder.kill()
    RunDir(private, private=True).close(finished=True)


@pytest.mark.parametrize("others", [0, 1], ids=["nobody else comes", "somebody is faster"])
def test_a_lock_that_its_last_owner_took_along_is_not_held(
    private: Path, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """Between this one's opening of the file and its locking, the owner ends and removes the file."""
    owner, flock, faster = RunDir(private, private=True), fcntl.flock, list[RunDir]()

    def flock_too_late(file: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        owner.close(finished=True)
        assert not private.exists()
        faster.extend(RunDir(private, private=True) for _ in range(others))
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock_too_late)
    if others:
        with pytest.raises(InUseError):
            RunDir(private, private=True)
        faster[0].close(finished=True)
        return
    run_dir = RunDir(private, private=True)
    assert mode(private) == 0o700
    with pytest.raises(InUseError):
        RunDir(private, private=True)
    run_dir.close(finished=True)


# What is in it


def test_what_was_recorded_is_found_by_the_next_life(private: Path) -> None:
    first = RunDir(private, private=True)
    first.serves(ASKED, LISTEN)
    first.record(WORKERS[:1])
    first.record(WORKERS)
    first.close(finished=False)
    second = RunDir(private, private=True)
    state = second.read()
    assert (state.asked, state.listen) == ("127.0.0.1:0", "127.0.0.1:50051")
    assert state.workers == tuple(WORKERS)
    assert state.version
    second.close(finished=True)


def test_a_new_one_has_nothing_recorded(run_dir: RunDir) -> None:
    assert run_dir.read() == State()


def test_once_all_workers_have_ended_nothing_is_left(private: Path) -> None:
    run_dir = RunDir(private, private=True)
    run_dir.record(WORKERS)
    run_dir.socket.touch()
    run_dir.close(finished=True)
    assert not private.exists()


def test_a_start_that_came_to_nothing_leaves_nothing(private: Path) -> None:
    run_dir = RunDir(private, private=True)
    run_dir.close(finished=False)
    assert not private.exists()


def test_one_that_the_user_chose_stays_but_for_what_was_put_there(tmp_path: Path) -> None:
    path = tmp_path / "chosen"
    path.mkdir(mode=0o700)
    (path / "of the user").write_text("keep")
    run_dir = RunDir(path, private=False)
    run_dir.record(WORKERS)
    run_dir.socket.touch()
    run_dir.close(finished=True)
    assert {each.name for each in path.iterdir()} - {"lock"} == {"of the user"}


def test_a_record_that_fails_leaves_the_last_one(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir.record(WORKERS)

    def torn(path: Path, text: str, **_: object) -> None:
        path.write_bytes(text.encode()[:20])
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", torn)
        with pytest.raises(OSError, match="no space"):
            run_dir.record([])
    assert run_dir.read().workers == tuple(WORKERS)


def test_a_torn_state_is_as_good_as_none(private: Path, run_dir: RunDir) -> None:
    run_dir.serves(ASKED, LISTEN)
    run_dir.record(WORKERS)
    file = private / "state.json"
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        assert run_dir.read() == State()
    file.write_bytes(whole)
    assert run_dir.read().workers == tuple(WORKERS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
ENTRY = st.fixed_dictionaries({}, optional=dict.fromkeys(("index", "incarnation", "pid", "arguments"), JSON))
STATE = st.fixed_dictionaries(
    {},
    optional={"asked": JSON, "listen": JSON, "version": JSON, "workers": JSON | st.lists(ENTRY, max_size=2)},
)


@given(garbage=st.binary(max_size=50) | (STATE | JSON).map(lambda value: json.dumps(value).encode()))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_is_as_good_as_no_state(private: Path, run_dir: RunDir, garbage: bytes) -> None:
    """It never raises, and of what it takes for a worker it can say whether that lives."""
    (private / "state.json").write_bytes(garbage)
    for worker in run_dir.read().workers:
        assert worker.lives() in (True, False)


@pytest.mark.parametrize(
    "wrong",
    [
        '"index": 1e999',
        '"index": null',
        '"pid": "many"',
        '"pid": -Infinity',
        '"arguments": 5',
        '"arguments": [5]',
        '"arguments": [null]',
    ],
)
def test_a_worker_that_can_not_be_is_as_good_as_none(private: Path, run_dir: RunDir, wrong: str) -> None:
    worker = '"index": 0, "incarnation": 1, "pid": 1, "arguments": ["a"]'
    state = '{"asked": "", "listen": "", "version": "", "workers": [{%s, %s}]}' % (worker, wrong)  # noqa: UP031
    (private / "state.json").write_text(state)
    assert run_dir.read() == State()


# Who still lives


@pytest.fixture
def sleeper() -> Iterator[tuple[subprocess.Popen[bytes], tuple[str, ...]]]:
    """A process that names its slot and its run directory, as workers do."""
    arguments = ("--index", "1", "--link", "ipc:///run/mine/link.sock")
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()", *arguments], stdin=subprocess.PIPE
    )
    yield process, arguments
    process.kill()
    process.communicate()


def test_a_process_lives_if_its_command_line_is_the_one_that_was_recorded(
    sleeper: tuple[subprocess.Popen[bytes], tuple[str, ...]],
) -> None:
    process, arguments = sleeper
    worker = Recorded(1, 1, process.pid, arguments)
    eventually(worker.lives, what="its own command line, once it has it,")
    process.kill()
    process.wait()
    assert not worker.lives()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--index", "2", "--link", "ipc:///run/mine/link.sock"),
        ("--index", "1", "--link", "ipc:///run/other/link.sock"),
        ("--index", "1", "--link"),
        ("1", "--link", "ipc:///run/mine/link.sock", ""),
        ("ex", "1", "--link", "ipc:///run/mine/link.sock"),
    ],
    ids=["another slot", "another run directory", "less", "more", "part of a word"],
)
def test_any_other_process_that_has_its_pid_now_is_not_it(
    sleeper: tuple[subprocess.Popen[bytes], tuple[str, ...]], arguments: tuple[str, ...]
) -> None:
    process, its_own = sleeper
    eventually(Recorded(1, 1, process.pid, its_own).lives)
    assert not Recorded(1, 1, process.pid, arguments).lives()


def test_one_that_was_about_to_be_started_does_not_live() -> None:
    assert not Recorded(0, 1, 0, ("--index", "0")).lives()


def test_a_pid_that_nobody_has_does_not_live() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert not Recorded(0, 1, process.pid, ("-c", "")).lives()


def test_a_process_that_has_ended_but_was_not_waited_for_does_not_live() -> None:
    process = subprocess.Popen([sys.executable, "-c", "", "--index", "0"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not Recorded(0, 1, process.pid, ("--index", "0")).lives()
    process.wait()
