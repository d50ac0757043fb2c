"""How a participant's TCP connection is made, in plaintext or with TLS.

Decides the channel's options. Their reasons are in PROTOCOL.md, A.11; the server must allow pings every
KEEPALIVE_TIME seconds without data, or it ends the connection with "too many pings". Which certificates and
which token, credentials.py decides.
"""

from __future__ import annotations

from typing import Final

import grpc
import grpc.aio

from participant_sdk.address import is_local
from protos.chunks import MAX_FRAME_SIZE
from protos.forks import check_process

CONNECT: Final = "/muster.stream.v1.ParticipantManager/Connect"

KEEPALIVE_TIME: Final = 10.0
"""Seconds without a word after which the other side is pinged."""

KEEPALIVE_TIMEOUT: Final = 5.0
"""Seconds that a ping may stay unanswered before the connection counts as lost."""

_FRAME_SLACK: Final = 64 * 1024

_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", int(KEEPALIVE_TIME * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT * 1000)),
    ("grpc.http2.ping_timeout_ms", int(KEEPALIVE_TIMEOUT * 1000)),  # without it a frozen peer goes unnoticed
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A TCP connection for each participant of a process: shared, they would all land on one worker.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", MAX_FRAME_SIZE + _FRAME_SLACK),
)


def _channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    """A new channel to the coordinator at ``address``; in plaintext without credentials.

    Made anew for each attempt, so that gRPC's own connection backoff never adds to ours, and renewed
    certificates are used.
    """
    check_process()
    # gRPC would go through a proxy (http_proxy) to loopback, too, with a token in plaintext.
    options = (*_OPTIONS, ("grpc.enable_http_proxy", int(not is_local(address))))
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)
