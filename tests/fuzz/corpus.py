"""The valid messages that fuzzing begins with: at least one of each kind, with all fields in use."""

from __future__ import annotations

import numpy as np
from google.protobuf.message import Message

from protos import link_pb2, stream_pb2
from protos.frames import OWN_FRAME
from protos.messages import instruction, result
from tests.fuzz.wire import Fields, take_apart

_TENSORS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2.0]),
    "n": np.array(3, np.int64),
    "mask": np.array([True, False]),
    "none": np.empty((0, 4), np.float16),
}
_SCALARS = {"loss": 0.25, "epochs": 3, "name": "a", "ok": True, "raw": b"\x00\xff"}

RESULT = result(tensors=_TENSORS, metrics=_SCALARS, weight=2.0, payload=b"payload", status="done")
INSTRUCTION = instruction("train", config=_SCALARS, tensors=_TENSORS, payload=b"payload")

PARTICIPANTS: list[stream_pb2.ParticipantMessage] = [
    RESULT,
    result(tensors={"w": np.ones((2, 3), np.float32)}, metrics={"loss": 1.0}, weight=1.0),
    result(tensors={"w": np.full((2, 3), 7, np.float32), "x": np.ones(300)}, weight=0.5),
    stream_pb2.ParticipantMessage(
        hello=stream_pb2.Hello(
            participant_id="phone-7", attributes={"region": "eu", "device": "phone"}, accepts_cancel=True
        )
    ),
    stream_pb2.ParticipantMessage(
        failure=stream_pb2.Failure(code=stream_pb2.Failure.HANDLER_ERROR, text="no data")
    ),
    stream_pb2.ParticipantMessage(leave=stream_pb2.Leave(reason="stopped")),
    stream_pb2.ParticipantMessage(chunk=stream_pb2.Chunk(total_size=40, data=b"\x12\x26" + bytes(18))),
    stream_pb2.ParticipantMessage(chunk=stream_pb2.Chunk(data=bytes(20))),
]

SERVERS: list[stream_pb2.ServerMessage] = [
    INSTRUCTION,
    instruction("evaluate"),
    stream_pb2.ServerMessage(reconnect=stream_pb2.Reconnect(delay_seconds=1.5, address="127.0.0.1:50051")),
    stream_pb2.ServerMessage(cancel=stream_pb2.Cancel()),
    stream_pb2.ServerMessage(chunk=stream_pb2.Chunk(total_size=30, data=bytes(10))),
]

_JOIN = link_pb2.Join(
    session=4, participant_id="phone-7", attributes={"region": "eu"}, peer="ipv4:127.0.0.1:5", tag=9
)
_MEMORY = link_pb2.Memory(pid=1, descriptor=5, content=b"0123456789abcdef")

UPWARD: list[tuple[link_pb2.Upward, list[bytes]]] = [
    (
        link_pb2.Upward(
            hello=link_pb2.Hello(
                version=1,
                incarnation=1,
                pid=77,
                address="h:1",
                sessions=[_JOIN] * 2,
                handshake=1,
                memory=_MEMORY,
            )
        ),
        [],
    ),
    (
        link_pb2.Upward(
            sequence=1,
            acknowledged=3,
            report=link_pb2.Report(
                payloads=link_pb2.Payloads(sizes=[3, 0, 5]),
                joins=[_JOIN],
                answer_sessions=[4, 5],
                answer_tags=[9, 10],
                folded=[link_pb2.Folded(batch=1, part=2, sessions=[4, 6], bytes=100, tag=9)],
                partials=[
                    link_pb2.Partial(
                        batch=1,
                        part=2,
                        closed=True,
                        groups=[link_pb2.Group(schema="[]", sessions=[4], payload=2)],
                    )
                ],
                end_sessions=[4, 5],
                end_reasons=[link_pb2.LOST, link_pb2.MOVED],
            ),
        ),
        [b"abcdefgh"],
    ),
    (
        link_pb2.Upward(
            sequence=2,
            report=link_pb2.Report(
                payloads=link_pb2.Payloads(sizes=[1, OWN_FRAME, OWN_FRAME + 1], shared=[2], descriptors=[6]),
                answer_sessions=[4, 5, 6],
                answer_tags=[1, 2, 3],
            ),
        ),
        [b"x", bytes(OWN_FRAME)],
    ),
    (
        link_pb2.Upward(heartbeat=link_pb2.Heartbeat(sent=2, cpu_seconds=0.5, refused={"x": 3})),
        [],
    ),
    (link_pb2.Upward(resend=link_pb2.Resend(first=1)), []),
    (link_pb2.Upward(sequence=3, goodbye=link_pb2.Goodbye(reason="drained")), []),
    (link_pb2.Upward(acknowledged=40), []),
]

_REDUCTION = link_pb2.Reduction(reducer="sum", options={"dtype": stream_pb2.Scalar(string_value="float32")})

DOWNWARD: list[tuple[link_pb2.Downward, list[bytes]]] = [
    (
        link_pb2.Downward(
            epoch=7,
            welcome=link_pb2.Welcome(
                version=1, heartbeat_seconds=0.5, grace_seconds=30.0, handshake=1, memory=_MEMORY
            ),
        ),
        [],
    ),
    (
        link_pb2.Downward(
            epoch=7,
            sequence=1,
            orders=link_pb2.Orders(
                payloads=link_pb2.Payloads(sizes=[3, 4]),
                instruct_sessions=[4, 5],
                instruct_tags=[9, 10],
                instruct_payloads=[0, 1],
                broadcasts=[
                    link_pb2.Broadcast(
                        tag=11, payload=1, sessions=[6, 7], batch=1, reduction=_REDUCTION, hurry=True
                    )
                ],
                cancel_sessions=[4],
                cancel_tags=[9],
                close_batches=[1],
                end_sessions=[8],
            ),
        ),
        [b"abcdefg"],
    ),
    (link_pb2.Downward(epoch=7, sequence=2, drain=link_pb2.Drain(grace_seconds=3.0)), []),
    (link_pb2.Downward(epoch=7, heartbeat=link_pb2.Heartbeat(sent=2)), []),
    (link_pb2.Downward(epoch=7, resend=link_pb2.Resend(first=1)), []),
    (link_pb2.Downward(epoch=7, identify=link_pb2.Identify()), []),
    (link_pb2.Downward(epoch=7, refusal=link_pb2.Refusal(reason="because")), []),
]


def apart(message: Message) -> Fields:
    """The fields of one of these messages."""
    return take_apart(message.SerializeToString(deterministic=True), message.DESCRIPTOR)
