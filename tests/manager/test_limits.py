"""Limits without sense are refused with a sentence; no worker takes more than it may open files for."""

from __future__ import annotations

import dataclasses
import math
import shlex
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from manager.limits import (
    LEAST_MESSAGE,
    LEAST_METADATA,
    MOST_MESSAGE,
    MOST_METADATA,
    OWN_FILES,
    SPARE_FILES,
    Limits,
    room,
)
from manager.options import LIMIT_NAMES, limit_options, take_limits
from manager.payloads.blobs import SHARE_SIZE
from manager.payloads.spool import MOST_FILES
from manager.serving.endpoint import MIN_PING_INTERVAL, server_options
from participant_sdk.channel import KEEPALIVE_TIME
from protos import chunks

limits = st.builds(
    Limits,
    max_per_worker=st.none() | st.integers(1, 10**6),
    max_per_address=st.integers(1, 10**6),
    max_joins=st.floats(0.1, 1e6),
    come_back=st.tuples(st.floats(0.001, 1000), st.floats(0, 1000)).map(lambda pair: (pair[0], sum(pair))),
    max_message=st.integers(LEAST_MESSAGE, MOST_MESSAGE),
    upload_memory=st.integers(0, 2**40),
    upload_disk=st.integers(0, 2**50),
    keepalive=st.floats(0.1, 3600),
    handshake_timeout=st.floats(0.1, 3600),
    hello_timeout=st.floats(0.1, 3600),
    idle_timeout=st.floats(0.1, 3600),
    max_metadata=st.integers(LEAST_METADATA, MOST_METADATA),
)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"max_per_worker": 0}, "max_per_worker must be at least 1"),
        ({"max_per_address": 0}, "max_per_address must be at least 1"),
        ({"max_joins": 0.0}, "max_joins must be at least"),
        ({"max_joins": math.nan}, "max_joins must be at least"),
        ({"max_joins": math.inf}, "max_joins must be at least"),
        ({"come_back": (0.0, 1.0)}, "come_back must be two times above 0 in order, not 0-1"),
        ({"come_back": (60.0, 10.0)}, "come_back must be two times above 0 in order, not 60-10"),
        ({"come_back": (1.0, math.inf)}, "come_back"),
        ({"come_back": (1.0, math.nan)}, "come_back"),
        ({"max_message": LEAST_MESSAGE - 1}, "max_message must be from 4194304 bytes"),
        ({"max_message": MOST_MESSAGE + 1}, "limit of protobuf; not 2147483648"),
        ({"upload_memory": -1}, "upload_memory must be"),
        ({"upload_disk": -1}, "upload_disk must be"),
        ({"keepalive": 0.0}, "keepalive must be from 0.1"),
        ({"keepalive": math.nan}, "keepalive must be from 0.1"),
        ({"keepalive": 3601.0}, "keepalive must be from 0.1"),
        ({"handshake_timeout": 0.0}, "handshake_timeout must be from 0.1"),
        ({"hello_timeout": math.inf}, "hello_timeout must be from 0.1"),
        ({"idle_timeout": math.nan}, "idle_timeout must be from 0.1"),
        ({"max_metadata": LEAST_METADATA - 1}, "max_metadata must be bytes from 1024"),
        ({"max_metadata": MOST_METADATA + 1}, "to 1048576: 1048577"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(field: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Limits(**field)


def test_the_sizes_of_messages_are_those_of_the_protocol() -> None:
    assert LEAST_MESSAGE == chunks.MAX_FRAME_SIZE
    assert MOST_MESSAGE == chunks.MAX_MESSAGE_SIZE
    assert Limits().max_message == chunks.MAX_MESSAGE_SIZE


# On the command line


@click.command()
@limit_options(click.option)
@click.pass_context
def show(ctx: click.Context, /, **options: Any) -> None:
    ctx.obj.append(take_limits(options))


def parsed(arguments: list[str]) -> Limits:
    found: list[Limits] = []
    result = CliRunner().invoke(show, arguments, obj=found)
    assert result.exit_code == 0, result.output
    return found[0]


def test_without_options_the_limits_are_the_defaults() -> None:
    assert parsed([]) == Limits()


def test_there_is_an_option_for_each_limit() -> None:
    assert [field.name for field in dataclasses.fields(Limits)] == LIMIT_NAMES


@given(limits)
def test_a_worker_gets_the_very_limits_that_the_coordinator_has(given: Limits) -> None:
    assert parsed(given.arguments()) == given


def test_sizes_have_units_and_windows_a_dash() -> None:
    found = parsed(shlex.split("--come-back 0.5-2 --max-message 4MiB --upload-memory 1G --upload-disk 2tb"))
    assert found == Limits(
        come_back=(0.5, 2.0), max_message=4 * 1024**2, upload_memory=1024**3, upload_disk=2 * 1024**4
    )


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--come-back=10", "write two times in seconds, as in 10-60"),
        ("--come-back=a-b", "write two times in seconds"),
        ("--come-back=60-10", "--come-back must be two times above 0 in order"),
        ("--come-back=-1-5", "--come-back must be two times above 0"),
        ("--max-message=many", "write a number of bytes"),
        ("--max-message=1.5GiB", "write a number of bytes"),
        ("--max-message=MiB", "write a number of bytes"),
        ("--max-message=1MiB", "--max-message must be from 4194304 bytes"),
        ("--max-joins=0", "x>=0.1"),
        ("--max-per-worker=0", "x>=1"),
        ("--keepalive=0", "0.1<=x<=3600"),
        ("--keepalive=nan", "keepalive"),
    ],
)
def test_an_option_that_makes_no_sense_is_a_usage_error(argument: str, words: str) -> None:
    result = CliRunner().invoke(show, [argument], obj=[])
    assert result.exit_code == 2
    assert words in result.output.replace("\n", " ")


# Files


@given(st.integers(0, 2**20))
def test_participants_leave_room_for_everything_else(files: int) -> None:
    if files <= OWN_FILES:
        with pytest.raises(ValueError, match="ulimit -n 65536"):
            room(Limits(), files)
        return
    found = room(Limits(), files)
    assert found.participants < found.streams <= files - OWN_FILES or files < OWN_FILES + 8
    spare = files - OWN_FILES - found.participants
    assert spare >= min((files - OWN_FILES) // 4, SPARE_FILES)
    assert found.participants >= files / 2 or files < 3 * OWN_FILES


def test_the_answers_that_are_kept_at_a_time_fit_into_what_is_left() -> None:
    in_memory = Limits().upload_memory // SHARE_SIZE
    assert in_memory + MOST_FILES < SPARE_FILES // 2
    found = room(Limits(), 20_000)
    assert 20_000 - OWN_FILES - found.streams >= in_memory + MOST_FILES


def test_more_participants_than_there_are_files_for_are_refused_with_what_to_do() -> None:
    most = room(Limits(), 1024).participants
    assert room(Limits(max_per_worker=most), 1024).participants == most
    with pytest.raises(
        ValueError, match=rf"{most + 1} participants per worker .* room for {most}; .*ulimit -n"
    ):
        room(Limits(max_per_worker=most + 1), 1024)


def test_fewer_participants_than_there_are_files_for_leave_the_others_to_the_newcomers() -> None:
    assert room(Limits(max_per_worker=10), 20_000).streams == room(Limits(), 20_000).streams


# gRPC


@given(limits)
def test_participants_may_always_ping_as_often_as_they_do(given: Limits) -> None:
    options = server_options(given)
    assert options["grpc.http2.min_ping_interval_without_data_ms"] == MIN_PING_INTERVAL * 1000
    assert 2 * MIN_PING_INTERVAL <= KEEPALIVE_TIME
    assert options["grpc.keepalive_time_ms"] == pytest.approx(given.keepalive * 1000, abs=1)
    for name in ("grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms"):
        assert options[name] == pytest.approx(given.keepalive * 500, abs=1)
        assert options[name] > 0
