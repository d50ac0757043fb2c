"""The keys of a link over TCP: what is read, and what is said of files that can't be used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq
import zmq.auth
from zmq.utils import z85

from manager.errors import StartError
from manager.link.keys import Pair, as_file, coordinator_keys, keys_for, worker_keys


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    directory = tmp_path / "link"
    directory.mkdir()
    for name in ("coordinator", "worker"):
        public, secret = zmq.curve_keypair()
        (directory / f"{name}.key").write_bytes(as_file(public))
        (directory / f"{name}.key_secret").write_bytes(as_file(public, secret))
        (directory / f"{name}.key_secret").chmod(0o600)
    return directory


def test_they_are_zeromqs_own_certificates(keys: Path) -> None:
    public, secret = zmq.auth.load_certificate(keys / "worker.key_secret")
    assert worker_keys(keys).pair == Pair(public, secret or b"")
    assert zmq.auth.load_certificate(keys / "worker.key") == (public, None)
    assert zmq.auth.load_certificates(keys).keys() == {public, coordinator_keys(keys).pair.public}


def test_a_worker_needs_two_files_only(keys: Path) -> None:
    coordinator = coordinator_keys(keys).pair
    (keys / "coordinator.key_secret").unlink()
    (keys / "worker.key").unlink()
    assert worker_keys(keys).coordinator == coordinator.public


def test_workers_with_keys_of_their_own_may_connect_if_these_are_there(keys: Path) -> None:
    other, _ = zmq.curve_keypair()
    stranger, _ = zmq.curve_keypair()
    (keys / "worker-rack2.key").write_bytes(as_file(other))
    (keys / "stranger.key").write_bytes(as_file(stranger))
    assert coordinator_keys(keys).allowed == {z85.decode(worker_keys(keys).pair.public), z85.decode(other)}


def test_no_secret_is_shown(keys: Path) -> None:
    for found in (worker_keys(keys), coordinator_keys(keys)):
        assert found.pair.secret.decode() not in repr(found)


def test_a_link_over_tcp_and_keys_go_together(keys: Path) -> None:
    assert keys_for("ipc:///run/link.sock", None) is None
    assert keys_for("tcp://127.0.0.1:1", keys) == worker_keys(keys)
    for endpoint, directory in (("tcp://127.0.0.1:1", None), ("ipc:///run/link.sock", keys)):
        with pytest.raises(StartError, match="--link-keys goes with a link over TCP"):
            keys_for(endpoint, directory)


def unlink(file: Path) -> None:
    file.unlink()


def others_may_read(file: Path) -> None:
    file.chmod(0o640)


def a_directory(file: Path) -> None:
    file.unlink()
    file.mkdir(mode=0o700)


def of_another_pair(file: Path) -> None:
    public, _ = zmq.curve_keypair()
    _, secret = zmq.curve_keypair()
    file.write_bytes(as_file(public, secret))


def public_only(file: Path) -> None:
    file.write_bytes(as_file(zmq.curve_keypair()[0]))


def holding(content: bytes) -> Callable[[Path], None]:
    def hold(file: Path) -> None:
        file.write_bytes(content)

    return hold


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        ("worker.key_secret", unlink, "No such file or directory: .*/worker.key_secret"),
        ("worker.key_secret", others_may_read, "others can read worker.key_secret; chmod 600"),
        ("worker.key_secret", a_directory, "Is a directory"),
        ("worker.key_secret", of_another_pair, "the secret key in worker.key_secret is not that of"),
        ("worker.key_secret", public_only, "worker.key_secret holds no secret key"),
        ("worker.key_secret", holding(b""), "worker.key_secret holds no public key"),
        (
            "worker.key_secret",
            holding(b'public-key = "a"\nsecret-key = "b"'),
            "is not that of the public one",
        ),
        ("coordinator.key", unlink, "No such file"),
        ("coordinator.key", holding(b"\xff\x00"), "coordinator.key holds no public key"),
        ("coordinator.key", holding(as_file(b"short")), "coordinator.key holds no public key of 40"),
        ("coordinator.key", holding(as_file(b"\xff" * 40)), "coordinator.key holds no public key of 40"),
    ],
)
def test_what_can_not_be_used_is_named(
    keys: Path, name: str, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(keys / name)
    with pytest.raises(StartError, match=words) as caught:
        worker_keys(keys)
    text = str(caught.value)
    assert text.startswith(f"can't use the link's keys in {keys}: ")
    assert text.endswith("(`coordinator certs` makes such keys)")


def test_the_coordinator_is_as_strict(keys: Path) -> None:
    (keys / "worker-rack2.key").write_bytes(b"")
    with pytest.raises(StartError, match=r"worker-rack2\.key holds no public key"):
        coordinator_keys(keys)
    shutil.rmtree(keys)
    with pytest.raises(StartError, match=r"No such file or directory: .*/coordinator\.key_secret"):
        coordinator_keys(keys)
