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


@pytest.mark.parametrize(
    "link", ["ipc", "tcp://127.0.0.1:5555", "tcp://127.0.0.1:0", "tcp://localhost:0", "tcp://[::1]:0"]
)
def test_the_link_may_use_ipc_or_loopback(link: str) -> None:
    assert Settings(link=link).link == link


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
        ("tcp://*:5555", "not encrypted"),
        ("tcp://0.0.0.0:5555", "not encrypted"),
        ("tcp://[::]:5555", "not encrypted"),
        ("tcp://127.0.0.1.example.org:5555", "not encrypted"),
        ("tcp://10.0.0.1:5555", "not encrypted"),
    ],
)
def test_any_other_link_is_refused(link: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings(link=link)


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
