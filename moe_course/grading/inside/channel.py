"""Messages between the grader and a student's process, or its zygote: whole, or refused.

A message is a head of 16 bytes (a mark, two lengths), then JSON, then the bytes of its tensors.
"""

import json
import socket
import struct
import time
from typing import Any

HEAD = struct.Struct("<4sIQ")
MARK = b"moe1"
MAX_JSON = 1 << 20
MAX_BLOB = 64 << 20  # bytes of the tensors of one message


class ProtocolError(Exception):
    """The other side sent what no honest one sends."""


class Closed(Exception):
    """The other side is gone."""


def send(channel: socket.socket, message: dict[str, Any], blob: bytes | bytearray = b"") -> None:
    """Send one message."""
    text = json.dumps(message).encode()
    channel.sendall(HEAD.pack(MARK, len(text), len(blob)) + text + blob)


def receive(channel: socket.socket, deadline: float | None = None) -> tuple[dict[str, Any], bytearray]:
    """The next message.

    Args:
        channel: from which to read.
        deadline: on the monotonic clock; None waits for ever.

    Raises:
        Closed: the other side hung up.
        TimeoutError: nothing whole came before the deadline.
        ProtocolError: what came is no message.
    """
    mark, text_length, blob_length = HEAD.unpack(_read(channel, HEAD.size, deadline))
    if mark != MARK or text_length > MAX_JSON or blob_length > MAX_BLOB:
        raise ProtocolError("a message with a false head, or too long a one")
    text = _read(channel, text_length, deadline)
    blob = _read(channel, blob_length, deadline)
    try:
        message = json.loads(text.decode())
    except (ValueError, RecursionError):
        raise ProtocolError("a message that is no JSON") from None
    if not isinstance(message, dict):
        raise ProtocolError("a message that is no object")
    return message, blob


def _read(channel: socket.socket, length: int, deadline: float | None) -> bytearray:
    found = bytearray(length)
    view, have = memoryview(found), 0
    while have < length:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            channel.settimeout(left)
        try:
            count = channel.recv_into(view[have:], min(length - have, 1 << 20))
        except ConnectionError:
            raise Closed from None
        if count == 0:
            raise Closed
        have += count
    return found
