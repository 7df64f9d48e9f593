"""A decoder in a process of its own: asked, waited for, ended when it takes too long, and started again."""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.core.errors import UserError
from fewstep.video.reading.arrays import Frames
from fewstep.video.reading.info import ClipInfo, ClipSource, Limits, Unreadable
from fewstep.video.reading.memory import Memory
from fewstep.video.reading.worker import KEEP, receive, send

START_SECONDS = 120.0
# the parent's own search path: the folder the process happens to start in must not add modules to it
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from fewstep.video.reading.worker import main; "
    "main(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))"
)


class Decoder:
    """Decodes clips in a worker process, under ``limits`` for each; the process starts with the first clip."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._shared: mmap.mmap | None = None
        self._memory = Memory(KEEP)
        self._owner = os.getpid()
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The worker's process id, None while there is none."""
        return None if self._process is None else self._process.pid

    def probe(self, source: ClipSource) -> ClipInfo:
        """Return what a clip holds; Unreadable for one that cannot be read within the limits."""
        with self._lock:
            answer = self._ask(source, {"do": "probe"})
        return ClipInfo(**answer["info"])

    def read(self, source: ClipSource, indices: Sequence[int], size: tuple[int, int] | None, reader: str) -> Frames:
        """Return frames "f h w 3" by ``reader``, ``av`` or ``decord``; Unreadable as in :meth:`probe`."""
        request = {"do": "read", "indices": list(indices), "size": size, "reader": reader}
        with self._lock:
            answer = self._ask(source, request)
            if self._shared is None:
                raise Unreadable(source.name, "its decoder gave no memory")
            shape = tuple(answer["shape"])
            # a copy: the worker fills the memory it shares again, and a forked process would see it do so
            frames = self._memory.array(shape)
            frames[:] = np.frombuffer(self._shared, np.uint8, frames.size).reshape(shape)
            if len(self._shared) > KEEP:
                self._shared = None
            return frames

    def join_sound(self, pictures: Path, source: ClipSource, target: Path) -> int:
        """Write the pictures of a file and the sound of a clip into a third; see :func:`.sound.join`."""
        paths = {"pictures": str(pictures.absolute()), "target": str(target.absolute())}
        with self._lock:
            answer = self._ask(source, {"do": "sound", **paths})
        return int(answer["tracks"])

    def close(self) -> None:
        """End the worker; the next request starts another."""
        with self._lock:
            self._end()

    def __del__(self) -> None:
        self._end()

    def _ask(self, source: ClipSource, request: dict[str, Any]) -> dict[str, Any]:
        """Return the worker's answer; Unreadable when it refuses, takes too long or dies of it."""
        place = {"path": str(source.path.absolute()), "offset": source.offset, "size": source.size}
        message = {**request, "source": {**place, "member": source.member}}
        # a worker may have died of something else since, such as a machine out of memory: a second one tells
        for last in (False, True):
            channel = self._started()
            try:
                channel.settimeout(self.limits.wait)
                send(channel, message)
                answer, descriptors = receive(channel)
                for descriptor in descriptors:
                    self._shared = _mapped(descriptor, answer["capacity"])
                break
            except TimeoutError:
                self._end()
                raise Unreadable(source.name, f"takes more than {self.limits.wait:g} s to decode") from None
            except (EOFError, OSError):
                code = self._end()
                if code == -signal.SIGPROF:
                    spent = f"takes more than {self.limits.seconds:g} s of processor time to decode"
                    raise Unreadable(source.name, spent) from None
                if last:
                    raise Unreadable(source.name, f"ends its decoder ({_ending(code)})") from None
            except BaseException:  # an interrupt leaves an answer behind that belongs to no later question
                self._end()
                raise
        if "refused" in answer:
            raise Unreadable(source.name, answer["refused"])
        return answer

    def _started(self) -> socket.socket:
        if self._channel is not None and self._owner == os.getpid():
            return self._channel
        self._owner = os.getpid()
        self._shared = None
        ours, theirs = socket.socketpair()
        arguments = [json.dumps(sys.path), str(theirs.fileno()), str(self.limits.memory), str(self.limits.seconds)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *arguments],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self._channel = ours
        try:
            ours.settimeout(START_SECONDS)
            receive(ours)
        except (EOFError, OSError) as error:
            code = self._end()
            advice = "python -c 'import fewstep.video.reading.worker' shows why"
            raise UserError(f"the process that decodes videos does not start ({_ending(code)}): {advice}") from error
        return ours

    def _end(self) -> int | None:
        """End the worker if it is this process's, and return its exit code."""
        process, channel = self._process, self._channel
        self._process = self._channel = self._shared = None
        if channel is not None:
            channel.close()
        if process is None or self._owner != os.getpid():
            return None
        # a closed channel ends a worker that waits; one that died has its own code, which killing leaves alone
        process.kill()
        return process.wait()


def shared_decoder(limits: Limits) -> Decoder:
    """Return this process's decoder with these limits; a forked process gets one of its own."""
    return _shared_decoder(limits, os.getpid())


@lru_cache(maxsize=8)
def _shared_decoder(limits: Limits, process: int) -> Decoder:
    return Decoder(limits)


def _mapped(descriptor: int, capacity: int) -> mmap.mmap:
    try:
        return mmap.mmap(descriptor, capacity)
    finally:
        os.close(descriptor)


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit status {code}"
    return signal.Signals(-code).name
