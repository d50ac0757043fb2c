"""Settings that make no sense are refused where they are made, with a sentence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from coordinator.settings import DEFAULT_CONTROL, DEFAULT_LISTEN, Settings, default_workers, make_settings
from manager.listen import Address


def test_the_defaults_make_sense() -> None:
    settings = Settings()
    assert settings.workers == default_workers() >= 1
    assert settings.listen == Address.parse(DEFAULT_LISTEN)
    assert settings.control is None
    assert settings.link == "ipc"
    assert Address.parse(DEFAULT_CONTROL) != settings.listen


@pytest.mark.parametrize("workers", [0, -1])
def test_there_must_be_a_worker(workers: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, not {workers}"):
        Settings(workers=workers)


KEYS = Path("link keys")


@pytest.mark.parametrize(
    "address", ["127.0.0.1:5555", "localhost:0", "[::1]:0", "10.0.0.1:5555", "0.0.0.0:1"]
)
def test_the_link_may_use_tcp_with_keys(address: str) -> None:
    assert Settings(link=f"tcp://{address}", link_keys=KEYS).link == f"tcp://{address}"
    with pytest.raises(
        ValueError, match=r"--link-keys DIR names the keys, and `coordinator certs` makes them"
    ):
        Settings(link=f"tcp://{address}")


def test_keys_are_for_tcp_alone() -> None:
    with pytest.raises(ValueError, match="--link-keys are for a link over tcp://"):
        Settings(link_keys=KEYS)
    assert make_settings(link="tcp://127.0.0.1:1", link_keys="link keys").link_keys == KEYS


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("", "ipc or tcp://host:port"),
        ("IPC", "ipc or tcp://host:port"),
        ("ipc:///tmp/x", "ipc or tcp://host:port"),
        ("udp://127.0.0.1:1", "ipc or tcp://host:port"),
        ("tcp://", "write host:port"),
        ("tcp://127.0.0.1", "write host:port"),
        ("tcp://127.0.0.1:x", "must be a number"),
        ("tcp://*:5555", "write 0.0.0.0"),
    ],
)
def test_any_other_link_is_refused(link: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings(link=link, link_keys=KEYS)


@pytest.mark.parametrize("setting", [{"log_level": "loud"}, {"log_level": "INFO"}, {"log_format": "xml"}])
def test_an_unknown_way_to_log_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        Settings(**setting)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"grace": -1.0}, "grace must be seconds of at least 0, not -1.0"),
        ({"grace": math.nan}, "grace must be"),
        ({"boot_timeout": math.nan}, "boot_timeout must be"),
        ({"heartbeat": 0.0}, "heartbeat must be seconds above 0"),
        ({"heartbeat": math.nan}, "heartbeat must be"),
        ({"heartbeat": math.inf}, "heartbeat must be"),
        ({"heartbeat": 1.5}, r"liveness must be more than two heartbeats \(3 s\), not 3.0"),
        ({"liveness": math.nan}, "liveness must be"),
        ({"orphan_grace": 1.0}, "orphan_grace must be more than two heartbeats"),
    ],
)
def test_times_that_can_not_work_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings(**settings)


def test_times_without_end_are_allowed() -> None:
    assert Settings(grace=0.0, liveness=math.inf, orphan_grace=math.inf)


def test_settings_do_not_change() -> None:
    with pytest.raises(AttributeError):
        Settings().workers = 3  # type: ignore[misc]


def test_the_run_directory_may_be_given_as_text() -> None:
    assert make_settings(run_dir="/somewhere").run_dir == Path("/somewhere")
