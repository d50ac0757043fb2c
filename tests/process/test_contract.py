"""What every way to reach participants promises: single process, coordinator, attached script.

One set of tests, run against each of the three.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from manager.api.outcome import Progress
from manager.errors import CallTimeout, NotEnoughParticipants, ParticipantFailed, ParticipantLost
from protos import stream_pb2
from tests.process.conftest import Echo, Served
from tests.support import PATIENCE, Devices, eventually, instruction

pytestmark = pytest.mark.usefixtures("coordinator")  # up before the first test, down after the last


def test_a_thousand_runs_in_a_row_each_get_their_own_answer(served: Served, devices: Devices) -> None:
    devices.join(served.address)
    (proxy,) = served.manager.get_participants(1, timeout=PATIENCE)
    for number in range(1000):
        assert proxy.echo(b"%d" % number) == b"%d" % number


def test_threads_that_run_on_one_proxy_each_get_their_own_answer(served: Served, devices: Devices) -> None:
    devices.join(served.address)
    (proxy,) = served.manager.get_participants(1, timeout=PATIENCE)

    def many(name: str) -> list[bool]:
        return [
            proxy.echo(b"%s %d" % (name.encode(), n)) == b"%s %d" % (name.encode(), n) for n in range(200)
        ]

    with ThreadPoolExecutor(4) as threads:
        assert all(all(answers) for answers in threads.map(many, ["a", "b", "c", "d"]))


def test_asking_for_none_returns_an_empty_cohort_at_once(served: Served, devices: Devices) -> None:
    assert len(served.manager.get_participants(0)) == 0
    devices.join(served.address, 2)
    eventually(lambda: served.pooled() == 2)
    assert len(served.manager.get_participants(0)) == 0


def test_all_that_match_are_returned_not_just_the_minimum(served: Served, devices: Devices) -> None:
    devices.join(served.address, 5)
    eventually(lambda: served.pooled() == 5)
    assert len(served.manager.get_participants(3)) == 5
    assert len(served.manager.get_participants(3, max_num_participants=4)) == 4


def test_where_selects_by_attributes(served: Served, devices: Devices) -> None:
    devices.join(served.address, 3, prefix="eu", region="eu", device="phone")
    devices.join(served.address, 2, prefix="us", region="us", device="phone")
    assert len(served.manager.get_participants(5, timeout=PATIENCE, where={"device": "phone"})) == 5
    cohort = served.manager.get_participants(3, timeout=PATIENCE, where={"region": "eu"})
    assert sorted(cohort.ids) == ["eu-0", "eu-1", "eu-2"]
    assert {proxy.attributes["region"] for proxy in cohort} == {"eu"}


def test_a_silent_stream_is_never_handed_out(served: Served, devices: Devices) -> None:
    silent = devices.one(served.address, None)
    devices.join(served.address, 1)
    cohort = served.manager.get_participants(1, timeout=PATIENCE)
    assert cohort.ids == ["device-0"]
    with pytest.raises(NotEnoughParticipants):
        served.manager.get_participants(2, timeout=0.2)
    silent.send(b"")  # now it is there
    assert len(served.manager.get_participants(2, timeout=PATIENCE)) == 2


def test_a_shortage_says_how_many_were_asked_for_and_where_the_others_are(
    served: Served, devices: Devices
) -> None:
    devices.join(served.address, 3)
    eventually(lambda: served.pooled() == 3)
    with pytest.raises(
        NotEnoughParticipants, match=r"asked for 10 participants; after \d+\.\d s there were 3"
    ) as e:
        served.manager.get_participants(10, timeout=0.1)
    assert isinstance(e.value, TimeoutError)
    assert (e.value.asked, e.value.matching, e.value.pooled) == (10, 3, 3)
    assert sum(e.value.matching_by_worker.values()) == 3
    with served.manager.lease(2):
        with pytest.raises(NotEnoughParticipants, match=r" there was 1 \(") as e:
            served.manager.get_participants(3, timeout=0)
        assert (e.value.matching, e.value.taken) == (1, 2)
        assert str(e.value).endswith(") and 2 that are leased or at work, of 3 pooled in all")
    with served.manager.lease(1):
        with pytest.raises(NotEnoughParticipants, match=r" and 1 that is leased or at work, of 3 pooled"):
            served.manager.get_participants(3, timeout=0)
        with pytest.raises(NotEnoughParticipants, match=r"asked for 1 participant where region=eu; "):
            served.manager.get_participants(1, where={"region": "eu"}, timeout=0)


def test_a_waiting_caller_returns_as_soon_as_the_last_one_joins(served: Served, devices: Devices) -> None:
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(served.manager.get_participants, 5, timeout=20)
        devices.join(served.address, 4, prefix="early")
        eventually(lambda: served.pooled() == 4)
        assert not waiting.done()
        devices.join(served.address, 1, prefix="late")
        assert len(waiting.result(PATIENCE)) == 5


def test_waiting_callers_are_served_in_the_order_of_asking(served: Served, devices: Devices) -> None:
    served_order: list[str] = []

    def lease(name: str, n: int) -> None:
        with served.manager.lease(n, timeout=20):
            served_order.append(name)
            if name == "first":
                assert not second_done.wait(0.05), "the second was served while the first held its lease"
        if name == "second":
            second_done.set()

    second_done = threading.Event()
    waiting_at_start = _waiting(served)
    first = threading.Thread(target=lease, args=("first", 3))
    first.start()
    eventually(lambda: _waiting(served) == waiting_at_start + 1)
    second = threading.Thread(target=lease, args=("second", 1))
    second.start()
    eventually(lambda: _waiting(served) == waiting_at_start + 2)
    devices.join(served.address, 2)  # enough for the second, who must not overtake
    eventually(lambda: served.pooled() == 2)
    assert served_order == []
    devices.join(served.address, 1, prefix="third")
    first.join(PATIENCE)
    second.join(PATIENCE)
    assert served_order == ["first", "second"]


def _waiting(served: Served) -> int:
    manager = served.manager
    if hasattr(manager, "status"):
        return int(manager.status().waiting)
    return manager._dispatcher.pool.waiting


def test_a_given_up_call_leaves_its_late_answer_to_nobody(served: Served, devices: Devices) -> None:
    (device,) = devices.join(served.address)
    (proxy,) = served.manager.get_participants(1, timeout=PATIENCE)
    with pytest.raises(CallTimeout, match=r"did not answer within 0\.2 s"):
        proxy.run(instruction("hold", b"late"), timeout=0.2)
    assert device.holding.wait(PATIENCE)
    assert device.cancelled.wait(PATIENCE), "it accepts cancel, and was not told"
    with ThreadPoolExecutor(1) as threads:
        following = threads.submit(proxy.echo, b"next")
        with pytest.raises(CallTimeout):
            proxy.echo(b"third", timeout=0.1)  # waits in the queue behind
        device.release()
        assert following.result(PATIENCE) == b"next"
    assert proxy.echo(b"fourth") == b"fourth"
    assert device.received == {b"late": 1, b"next": 1, b"fourth": 1}


def test_a_device_that_dies_in_run_is_lost(served: Served, devices: Devices) -> None:
    devices.join(served.address)
    (proxy,) = served.manager.get_participants(1, timeout=PATIENCE)
    with pytest.raises(ParticipantLost, match="device-0 was lost"):
        proxy.run(instruction("die"))
    eventually(lambda: not proxy.connected)
    with pytest.raises(ParticipantLost):
        proxy.echo(b"")


def test_what_waits_in_the_queue_of_a_device_that_dies_is_lost_too(served: Served, devices: Devices) -> None:
    (device,) = devices.join(served.address)
    (proxy,) = served.manager.get_participants(1, timeout=PATIENCE)
    with ThreadPoolExecutor(3) as threads:
        runs = [threads.submit(proxy.run, instruction("hold")) for _ in range(3)]
        assert device.holding.wait(PATIENCE)
        device.cut()
        for run in runs:
            with pytest.raises(ParticipantLost):
                run.result(PATIENCE)


@pytest.mark.timed
def test_a_device_that_leaves_is_gone_from_the_pool_within_a_second(served: Served, devices: Devices) -> None:
    device, _ = devices.join(served.address, 2)
    eventually(lambda: served.pooled() == 2)
    device.leave()
    left_at = time.monotonic()
    eventually(lambda: served.pooled() == 1)
    assert time.monotonic() - left_at < 1
    eventually(lambda: device.ended is not None)
    assert device.ended is not None
    assert device.ended[0].name == "OK"


def test_a_failure_is_raised_in_the_participants_own_words(served: Served, devices: Devices) -> None:
    devices.join(served.address)
    (proxy,) = served.manager.get_participants(1, timeout=PATIENCE)
    with pytest.raises(ParticipantFailed, match="device-0 failed with HANDLER_ERROR: as asked") as caught:
        proxy.run(instruction("fail"))
    assert caught.value.failure.text == "as asked"


def test_an_answer_that_is_no_protobuf_is_a_failure_not_a_crash(served: Served, devices: Devices) -> None:
    devices.join(served.address)
    (proxy,) = served.manager.get_participants(1, timeout=PATIENCE)
    with pytest.raises(ParticipantFailed, match="not a valid ParticipantMessage"):
        proxy.run(instruction("garbage"))
    assert proxy.echo(b"still there") == b"still there"


def test_empty_messages_pass_through_in_both_directions(served: Served, devices: Devices) -> None:
    devices.one(served.address, stream_pb2.ParticipantMessage())
    (proxy,) = served.manager.get_participants(1, timeout=PATIENCE)
    assert proxy.id.startswith("anonymous-")
    assert proxy.run(instruction("empty")) == stream_pb2.ParticipantMessage()
    assert proxy.run(stream_pb2.ServerMessage()).HasField("result")


@pytest.mark.parametrize("size", [5 * 2**20, 2**20 - 20, 2**20, 2**20 + 1])
def test_large_messages_pass_in_both_directions(served: Served, devices: Devices, size: int) -> None:
    devices.join(served.address)
    (proxy,) = served.manager.get_participants(1, timeout=PATIENCE)
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert proxy.echo(payload) == payload
    assert proxy.echo(b"small again") == b"small again"


def test_a_cohort_runs_at_once_and_names_everyone_exactly_once(
    served: Served, devices: Devices, deadlines: threading.Event
) -> None:
    joined = devices.join(served.address, 12)
    cohort = served.manager.get_participants(12, timeout=PATIENCE)
    outcome = cohort.run(instruction("echo", b"all"))
    assert {proxy.id: message.result.status for proxy, message in outcome.results.items()} == {
        device.id: device.id for device in joined
    }
    names = ["die", "fail", "hold", "empty"]
    by_id = {proxy.id: proxy for proxy in cohort}

    def progress(now: Progress) -> None:
        if now.ended == 11:  # all but the one that holds
            deadlines.set()

    mixed = cohort.run(
        {
            proxy: instruction(names[number]) if number < len(names) else instruction("echo")
            for number, proxy in enumerate(by_id[device.id] for device in joined)
        },
        timeout=0.2,
        progress=progress,
    )
    assert [proxy.id for proxy in mixed.lost] == ["device-0"]
    assert [proxy.id for proxy in mixed.failures] == ["device-1"]
    assert [proxy.id for proxy in mixed.timed_out] == ["device-2"] == [proxy.id for proxy in mixed.stragglers]
    assert len(mixed.results) == 9
    assert len(mixed) == 12
    joined[2].release()


def test_a_quorum_ends_a_cohorts_call_early(served: Served, devices: Devices) -> None:
    joined = devices.join(served.address, 4)
    cohort = served.manager.get_participants(4, timeout=PATIENCE)
    messages = [instruction("hold" if proxy.id == "device-3" else "echo") for proxy in cohort]
    outcome = cohort.run(messages, quorum=3)
    assert len(outcome.results) == 3
    assert [proxy.id for proxy in outcome.cancelled] == ["device-3"]
    assert joined[3].cancelled.wait(PATIENCE)
    joined[3].release()


def test_the_same_proxy_stands_for_the_same_session(served: Served, devices: Devices) -> None:
    devices.join(served.address, 3)
    first = served.manager.get_participants(3, timeout=PATIENCE)
    second = served.manager.get_participants(3, timeout=PATIENCE)
    assert set(first) == set(second)
    assert all(type(proxy) is Echo for proxy in first)


def test_leased_participants_are_nobody_elses(served: Served, devices: Devices) -> None:
    devices.join(served.address, 5)
    with served.manager.lease(3, timeout=PATIENCE) as leased:
        assert len(leased) == 3
        with pytest.raises(NotEnoughParticipants):
            served.manager.lease(3, timeout=0.1)
        rest = served.manager.get_participants(2, timeout=PATIENCE)
        assert not set(rest) & set(leased)
        assert len(leased.run(instruction("echo"), timeout=PATIENCE).results) == 3
    assert len(served.manager.get_participants(5, timeout=PATIENCE)) == 5
    lease = served.manager.lease(5, timeout=PATIENCE)
    lease.release()
    lease.release()
    served.manager.lease(5, timeout=PATIENCE).release()


def test_a_lease_of_nobody_is_an_empty_cohort(served: Served, devices: Devices) -> None:
    devices.join(served.address, 1)
    assert len(served.manager.get_participants(1, timeout=PATIENCE)) == 1
    with served.manager.lease(0) as nobody:
        assert list(nobody) == []
        assert len(nobody.run(instruction("echo"))) == 0
    assert len(served.manager.get_participants(1, timeout=PATIENCE)) == 1, "the others are still there"


def test_a_part_of_a_leased_cohort_ends_the_lease(served: Served, devices: Devices) -> None:
    devices.join(served.address, 4)
    with served.manager.lease(4, timeout=PATIENCE).sample(2) as part:
        assert len(part) == 2
        with pytest.raises(NotEnoughParticipants):
            served.manager.get_participants(1, timeout=0.1)
    assert len(served.manager.lease(4, timeout=PATIENCE)[:1]) == 1


def test_numbers_may_come_from_numpy(served: Served, devices: Devices) -> None:
    devices.join(served.address, 3)
    numbers = np.array([2, 3])
    assert len(served.manager.get_participants(numbers[0], numbers[1], timeout=PATIENCE)) in (2, 3)


def test_what_is_no_message_is_refused_with_a_sentence(served: Served, devices: Devices) -> None:
    devices.join(served.address, 2)
    cohort = served.manager.get_participants(2, timeout=PATIENCE)
    with pytest.raises(TypeError, match=r"run\(\) sends a ServerMessage"):
        cohort.run("train")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"run\(\) sends a ServerMessage"):
        cohort[0].run("train")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="timeout must be None or seconds"):
        cohort.run(instruction("echo"), timeout="3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a quorum of 3 can't be reached by 2 participants"):
        cohort.run(instruction("echo"), quorum=3)


def test_a_timeout_that_is_not_a_number_costs_nobody_anything(served: Served, devices: Devices) -> None:
    devices.join(served.address, 2)
    cohort = served.manager.get_participants(2, timeout=PATIENCE)
    for bad in (float("nan"), -1.0):
        with pytest.raises(ValueError, match="timeout"):
            cohort.run(instruction("echo"), timeout=bad)
        with pytest.raises(ValueError, match="timeout"):
            cohort[0].run(instruction("echo"), timeout=bad)
    assert len(cohort.run(instruction("echo"), timeout=PATIENCE).results) == 2


def test_a_busy_participant_is_not_leased(served: Served, devices: Devices) -> None:
    (device,) = devices.join(served.address)
    (proxy,) = served.manager.get_participants(1, timeout=PATIENCE)
    with pytest.raises(CallTimeout):
        proxy.run(instruction("hold"), timeout=0.1)
    with pytest.raises(NotEnoughParticipants):
        served.manager.lease(1, timeout=0.1)
    device.release()
    with served.manager.lease(1, timeout=PATIENCE) as cohort:
        assert cohort[0].echo(b"x") == b"x"


def test_a_newer_session_with_the_same_id_replaces_the_older(served: Served, devices: Devices) -> None:
    (older,) = devices.join(served.address)
    (proxy,) = served.manager.get_participants(1, timeout=PATIENCE)
    with ThreadPoolExecutor(1) as threads:
        run = threads.submit(proxy.run, instruction("hold"))
        assert older.holding.wait(PATIENCE)
        devices.join(served.address)
        with pytest.raises(ParticipantLost):
            run.result(PATIENCE)
    eventually(lambda: older.ended is not None)
    assert older.ended is not None
    assert older.ended[0].name == "ALREADY_EXISTS"
    (newer,) = served.manager.get_participants(1, timeout=PATIENCE)
    assert newer is not proxy
    assert newer.echo(b"new") == b"new"


def test_a_message_out_of_turn_ends_the_stream_with_a_sentence(served: Served, devices: Devices) -> None:
    (device, other) = devices.join(served.address, 2)
    eventually(lambda: served.pooled() == 2)
    device.send(stream_pb2.ParticipantMessage(result=stream_pb2.Result()).SerializeToString())
    eventually(lambda: device.ended is not None)
    assert device.ended is not None
    assert device.ended[0].name == "FAILED_PRECONDITION"
    assert "no instruction is waiting for an answer" in device.ended[1]
    eventually(lambda: served.pooled() == 1)
    assert other.ended is None


def test_malformed_bytes_end_the_stream_as_an_invalid_argument(served: Served, devices: Devices) -> None:
    device = devices.one(served.address, None)
    device.send(b"\xff\xff\xff")
    eventually(lambda: device.ended is not None)
    assert device.ended is not None
    assert device.ended[0].name == "INVALID_ARGUMENT"
    hello = devices.one(served.address, None)
    hello.send(b"\x0a\x03\x0a\x7f\x00")  # a hello whose content is no protobuf
    eventually(lambda: hello.ended is not None)
    assert hello.ended is not None
    assert hello.ended[0].name == "INVALID_ARGUMENT"


def test_what_only_managers_may_send_is_refused(served: Served, devices: Devices) -> None:
    devices.join(served.address)
    cohort = served.manager.get_participants(1, timeout=PATIENCE)
    for message in (
        stream_pb2.ServerMessage(reconnect=stream_pb2.Reconnect()),
        stream_pb2.ServerMessage(cancel=stream_pb2.Cancel()),
        stream_pb2.ServerMessage(chunk=stream_pb2.Chunk(data=b"x")),
    ):
        with pytest.raises(ValueError, match="only an instruction or an empty message"):
            cohort[0].run(message)
        with pytest.raises(ValueError, match="only an instruction or an empty message"):
            cohort.run(message)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"min_num_participants": -1}, "at least 0"),
        ({"min_num_participants": 2, "max_num_participants": 1}, "must be at least"),
        ({"min_num_participants": 1, "timeout": -1}, "timeout"),
        ({"min_num_participants": True}, "integer"),
        ({"min_num_participants": 2.5}, "integer"),
        ({"min_num_participants": 1, "max_num_participants": 1.5}, "integer"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_at_once(
    served: Served, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        served.manager.get_participants(**arguments)
