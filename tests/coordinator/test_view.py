"""What the terminal and ``--json`` show of a coordinator, whatever participants call themselves."""

from __future__ import annotations

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from coordinator.commands.terminal import (
    CpuLoad,
    duration,
    mebibytes,
    render_participants,
    render_status,
)
from coordinator.commands.view import LogView, as_dict, time_to_finish
from protos import control_pb2

STATUS = control_pb2.Status(
    version="1.2",
    listen="127.0.0.1:1",
    participants=1_234,
    uptime_seconds=61.5,
    counters=control_pb2.Counters(results=5, late=1),
    workers=[control_pb2.Worker(index=0, incarnation=2, state="up", participants=7, rss_bytes=2**20)],
)


def shown(renderable: RenderableType, width: int = 200) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None).print(renderable)
    return out.getvalue()


# as_dict


def test_every_field_is_there_under_its_own_name_even_at_its_default() -> None:
    assert as_dict(control_pb2.Participant(id="a", attributes={"k": "v"})) == {
        "key": 0,
        "id": "a",
        "attributes": {"k": "v"},
        "worker": 0,
        "peer": "",
        "busy": False,
        "leased": False,
        "connected_seconds": 0.0,
    }


def test_messages_within_messages_become_dicts_and_lists() -> None:
    status = as_dict(STATUS)
    assert set(status) == {field.name for field in control_pb2.Status.DESCRIPTOR.fields}
    assert status["counters"]["late"] == 1
    assert [worker["incarnation"] for worker in status["workers"]] == [2]
    assert as_dict(control_pb2.Status())["counters"]["results"] == 0
    assert as_dict(control_pb2.Status())["workers"] == []


@given(st.integers(0, 2**64 - 1), st.text(), st.dictionaries(st.text(), st.text()))
def test_what_is_shown_survives_json(key: int, id: str, attributes: dict[str, str]) -> None:
    participant = control_pb2.Participant(key=key, id=id, attributes=attributes)
    found = json.loads(json.dumps(as_dict(participant)))
    assert found["key"] == key  # a number, where protobuf's own JSON makes it a string
    assert control_pb2.Participant(**found) == participant


@given(st.text())
def test_a_status_survives_json(text: str) -> None:
    status = control_pb2.Status(version=text)
    assert json.loads(json.dumps(as_dict(status)))["version"] == text


# For people


def test_a_status_shows_workers_and_what_has_happened() -> None:
    text = shown(render_status(STATUS))
    assert "127.0.0.1:1" in text
    assert "1,234" in text
    assert "0:01:01" in text
    assert "5 results" in text
    assert "1 late" in text
    assert "lost" not in text  # nothing of what hasn't happened


def test_what_has_happened_has_a_line_of_its_own_that_80_columns_are_enough_for() -> None:
    counters = control_pb2.Counters(results=1, failures=2, lost=3, timed_out=4, cancelled=5, late=6)
    text = shown(render_status(control_pb2.Status(calls=1, moving=7, counters=counters)), width=80)
    assert text.splitlines()[-2:] == [
        "0 busy · 0 leased · 0 attached · 0 waiting · 1 call running · 7 moving",
        "1 result · 2 failures · 3 lost · 4 timed out · 5 cancelled · 6 late",
    ]


def test_restarts_are_counted_from_the_second_incarnation_on() -> None:
    rows = (line.split() for line in shown(render_status(STATUS)).splitlines())
    (row,) = (row for row in rows if row[:2] == ["0", "up"])
    assert row[-1] == "1"


@pytest.mark.parametrize("name", ["[/]", "[bold]x", "[/red]", "a[1]", ":smile:", "\\[x]", "[link=http://x]y"])
def test_a_participant_is_shown_by_the_name_it_has(name: str) -> None:
    participant = control_pb2.Participant(id=name, attributes={name: name}, peer=name)
    text = shown(render_participants([participant]))
    assert text.count(name) == 4


@pytest.mark.parametrize(
    ("peer", "text"),
    [
        ("ipv4:127.0.0.1:60924", "127.0.0.1:60924"),
        ("ipv6:%5B::1%5D:48974", "[::1]:48974"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "[fe80::1%eth0]:1"),
        ("unix:", "unix:"),
    ],
)
def test_addresses_are_shown_as_people_write_them(peer: str, text: str) -> None:
    shown_last = shown(render_participants([control_pb2.Participant(id="a", peer=peer)])).split()[-1]
    assert shown_last == text


@given(st.text(max_size=30))
def test_no_participant_can_speak_to_the_terminal(text: str) -> None:
    participant = control_pb2.Participant(id=text, attributes={text: text}, peer=text)
    out = shown(render_participants([participant]))
    assert all(char.isprintable() or char == "\n" for char in out)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0:00:00"), (59.9, "0:00:59"), (3_600, "1:00:00"), (180_000, "2 days, 2:00:00")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("calls", "text"),
    [(1, "1 running call has 2.5 s to finish"), (1_200, "1,200 running calls have 2.5 s to finish")],
)
def test_time_to_finish(calls: int, text: str) -> None:
    assert time_to_finish(calls, 2.46) == text


@pytest.mark.parametrize(("size", "text"), [(0, ""), (2**20, "1 MiB"), (3 * 2**30, "3072 MiB")])
def test_sizes(size: int, text: str) -> None:
    assert mebibytes(size) == text


def test_cpu_load_is_known_from_the_second_look_on() -> None:
    load = CpuLoad()
    assert load.percent(1, 10.0, 100.0) is None
    assert load.percent(1, 11.0, 102.0) == 50.0
    assert load.percent(1, 11.0, 102.0) is None  # no time has passed
    assert load.percent(2, 1.0, 103.0) is None
    assert load.percent(1, 5.0, 104.0) == 0.0  # the process was replaced by another of this number


def test_the_log_tells_changes_only(caplog: pytest.LogCaptureFixture) -> None:
    view = LogView()
    with caplog.at_level(logging.INFO, "muster.coordinator"), view:
        view.update(control_pb2.Status())
        view.update(control_pb2.Status(participants=3))
        view.update(control_pb2.Status(participants=3))
        view.update(control_pb2.Status(participants=2))
        view.update(control_pb2.Status(participants=1))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "3 participants (+3)",
        "2 participants (-1)",
        "1 participant (-1)",
    ]


def test_what_was_refused_is_shown_where_there_is_any() -> None:
    assert "refused" not in shown(render_status(STATUS))
    status = control_pb2.Status(refused={"max_joins": 2, "credentials": 1_234})
    assert "1,236 refused (credentials 1,234, max_joins 2)" in shown(render_status(status))


def test_what_is_wrong_with_files_is_shown() -> None:
    status = control_pb2.Status(troubles=["the tokens stay as they were: can't read t: No such file"])
    assert (
        shown(render_status(status))
        .rstrip()
        .endswith("the tokens stay as they were: can't read t: No such file")
    )
