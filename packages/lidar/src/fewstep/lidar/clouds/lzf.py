"""LZF, the compression of ``.pcd`` files: runs of bytes as they are, and copies of what was already written."""

from __future__ import annotations

from fewstep.core.errors import UserError, check

MAX_RATIO = 88  # three bytes can stand for 264


def decompress(data: bytes, size: int, where: str) -> bytes:
    """Return the ``size`` bytes that ``data`` stands for; UserError when it does not stand for exactly so many."""
    damaged = UserError(f"{where}: its compressed data are damaged: copy it again")
    check(size <= MAX_RATIO * len(data), str(damaged))
    out = bytearray()
    at, end = 0, len(data)
    while at < end:
        control = data[at]
        at += 1
        if control < 32:  # control + 1 bytes follow as they are
            stop = at + control + 1
            if stop > end:
                raise damaged
            out += data[at:stop]
            at = stop
        else:  # a copy: 3 bits of length, 13 of distance, 8 more of length when these are all ones
            length = control >> 5
            if at + (2 if length == 7 else 1) > end:
                raise damaged
            if length == 7:
                length += data[at]
                at += 1
            distance = ((control & 31) << 8 | data[at]) + 1
            at += 1
            length += 2
            begin = len(out) - distance
            if begin < 0:
                raise damaged
            copied = out[begin : begin + length]
            while len(copied) < length:  # it runs into what it writes: the piece repeats
                copied += copied[: length - len(copied)]
            out += copied
        if len(out) > size:
            raise damaged
    if len(out) != size:
        raise damaged
    return bytes(out)
