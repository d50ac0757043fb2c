"""HTTP/2 by hand, as far as it takes to say something wrong in it: frames, and plain headers."""

from __future__ import annotations

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4

CONNECT = "/muster.stream.v1.ParticipantManager/Connect"
ATTACH = "/muster.control.v1.Control/Attach"


def frame(
    kind: int, payload: bytes = b"", *, stream: int = 0, flags: int = 0, size: int | None = None
) -> bytes:
    """One frame; ``size`` lies about its length."""
    length = len(payload) if size is None else size
    return length.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def hello() -> bytes:
    """What a client begins with."""
    return PREFACE + frame(SETTINGS)


def call(path: str = CONNECT, *, stream: int = 1, **metadata: str) -> bytes:
    """Opens a gRPC call."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        **{name.replace("_", "-"): value for name, value in metadata.items()},
    }
    block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields.items())
    first, rest = block[:16_000], block[16_000:]
    frames = [frame(HEADERS, first, stream=stream, flags=0 if rest else END_HEADERS)]
    while rest:
        part, rest = rest[:16_000], rest[16_000:]
        frames.append(frame(CONTINUATION, part, stream=stream, flags=0 if rest else END_HEADERS))
    return b"".join(frames)


def message(data: bytes, *, size: int | None = None, compressed: int = 0) -> bytes:
    """A gRPC message with its prefix; ``size`` lies about its length."""
    return bytes([compressed]) + (len(data) if size is None else size).to_bytes(4, "big") + data


def data(content: bytes, *, stream: int = 1, end: bool = False) -> bytes:
    """DATA frames."""
    parts = [content[at : at + 16_000] for at in range(0, len(content), 16_000)] or [b""]
    ends = [END_STREAM if end and part is parts[-1] else 0 for part in parts]
    return b"".join(
        frame(DATA, part, stream=stream, flags=flags) for part, flags in zip(parts, ends, strict=True)
    )


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogateescape")  # "\udcff" is the byte ff
    if len(encoded) < 127:
        return bytes([len(encoded)]) + encoded
    rest, size = len(encoded) - 127, bytearray([127])
    while rest >= 128:
        size.append(rest % 128 + 128)
        rest //= 128
    return bytes([*size, rest]) + encoded
