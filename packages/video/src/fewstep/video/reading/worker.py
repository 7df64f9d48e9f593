"""The process that decodes: it answers one request after another, within limits it cannot raise.

A message is its length (4 bytes, big-endian) and a JSON object; frames lie in memory that both processes map, whose
descriptor travels with the first of them. Only numpy and the decoders are imported here, so that it starts fast.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import resource
import signal
import socket
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.video.reading.arrays import Frames
from fewstep.video.reading.info import ClipSource, Unreadable

MAX_MESSAGE = 2**24
LENGTH = 4  # bytes
KEEP = 2**29  # bytes of memory that stay shared between two requests


def send(to: socket.socket, message: dict[str, Any], descriptors: list[int] | None = None) -> None:
    """Send a message, and descriptors with its first bytes."""
    body = json.dumps(message).encode()
    head = len(body).to_bytes(LENGTH, "big")
    if descriptors:
        socket.send_fds(to, [head], descriptors)
    else:
        to.sendall(head)
    to.sendall(body)


def receive(source: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return a message and the descriptors that came with it; EOFError when the other side is gone."""
    head, descriptors, _, _ = socket.recv_fds(source, LENGTH, 1)
    while 0 < len(head) < LENGTH:
        head += source.recv(LENGTH - len(head)) or _gone()
    size = int.from_bytes(head, "big") if head else _gone()
    body = bytearray()
    if size > MAX_MESSAGE:
        raise EOFError(f"a message of {size} bytes")
    while len(body) < size:
        body += source.recv(min(size - len(body), 2**16)) or _gone()
    return json.loads(body), descriptors


def _gone() -> Any:
    raise EOFError("the other process is gone")


def main(descriptor: int, memory: int, seconds: float) -> None:
    """Answer requests on a socket until it is closed. ``memory``: MiB beyond what the process starts with."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    channel = socket.socket(fileno=descriptor)
    _limit_memory(memory)
    send(channel, {"ready": True})
    shared = Shared(memory * 2**20)
    while True:
        try:
            request, _ = receive(channel)
        except (EOFError, ConnectionError):
            return
        # ends this process with SIGPROF, whatever code it is in, and also when its parent is gone
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            answer = _answer(request, shared.allocate)
        except Unreadable as error:
            answer = {"refused": error.reason}
        except MemoryError:
            answer = {"refused": f"needs more than the {memory} MiB that are allowed"}
        # whatever a damaged file makes a decoder raise is about this file, and this process has no other business
        except Exception as error:
            answer = {"refused": f"{type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0]}"}
        if "shape" in answer:
            shared.send(channel, answer["shape"])
        else:
            send(channel, answer)


def _answer(request: dict[str, Any], allocate: Callable[[tuple[int, ...]], Frames]) -> dict[str, Any]:
    from fewstep.video.reading import pyav

    given = request["source"]
    source = ClipSource(Path(given["path"]), given["offset"], given["size"], given["member"])
    if request["do"] == "probe":
        return {"info": asdict(pyav.probe(source))}
    if request["do"] == "sound":
        from fewstep.video.reading import sound

        return {"tracks": sound.join(Path(request["pictures"]), source, Path(request["target"]))}
    size = tuple(request["size"]) if request["size"] else None
    if request["reader"] == "decord":
        from fewstep.video.reading import with_decord

        frames = with_decord.read(source, request["indices"], size, allocate)
    else:
        frames = pyav.read(source, request["indices"], size, allocate)
    return {"shape": frames.shape}


class Shared:
    """Memory without a name that another process maps as well; it is used again, since mapping it is what costs.

    ``limit``: bytes at most; more than :data:`KEEP` are let go after each answer, on both sides.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._map: mmap.mmap | None = None
        self._unsent: list[int] = []

    def allocate(self, shape: tuple[int, ...]) -> Frames:
        """Return an array of ``shape`` at its start; MemoryError beyond the limit."""
        size = math.prod(shape)
        if size > self.limit:
            raise MemoryError
        if self._map is None or len(self._map) < size:
            self._drop()
            if hasattr(os, "memfd_create"):
                self._unsent = [os.memfd_create("fewstep-clip")]
            else:
                with tempfile.TemporaryFile() as file:
                    self._unsent = [os.dup(file.fileno())]
            os.ftruncate(self._unsent[0], size)
            self._map = mmap.mmap(self._unsent[0], size)
        return np.frombuffer(self._map, np.uint8, size).reshape(shape)

    def send(self, to: socket.socket, shape: tuple[int, ...]) -> None:
        """Say that frames of ``shape`` are there, with the memory's descriptor unless the other side has it."""
        if self._map is None:
            raise EOFError("nothing to send")
        send(to, {"shape": shape, "capacity": len(self._map)}, self._unsent)
        if self._unsent or len(self._map) > KEEP:
            kept = self._map if len(self._map) <= KEEP else None
            self._drop()
            self._map = kept

    def _drop(self) -> None:
        self._map = None
        for descriptor in self._unsent:
            os.close(descriptor)
        self._unsent = []


def _limit_memory(memory: int) -> None:
    """Limit the address space to what is in use plus ``memory`` MiB, twice: for the decoder and for the frames."""
    used = 0
    if Path("/proc/self/statm").exists():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    _lower(resource.RLIMIT_AS, used + 2 * memory * 2**20)
    _lower(resource.RLIMIT_CORE, 0)


def _lower(which: int, limit: int) -> None:
    _, hard = resource.getrlimit(which)
    wanted = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(which, (wanted, wanted))
