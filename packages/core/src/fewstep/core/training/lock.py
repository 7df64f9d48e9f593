"""One run per folder: a lock file that names its owner, and is recognised as stale when the owner is gone."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import psutil

from fewstep.core.errors import UserError

NAME = "run.lock"


def _owner(pid: int) -> dict[str, Any]:
    return {"pid": pid, "host": socket.gethostname(), "started": psutil.Process(pid).create_time()}


def _alive(owner: dict[str, Any]) -> bool:
    try:
        # a process id is used again after a reboot; with its starting time it is not
        return bool(abs(psutil.Process(int(owner["pid"])).create_time() - float(owner["started"])) < 2)
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


class RunLock:
    """Holds a run folder while inside. Raises UserError when another process holds it."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / NAME

    def __enter__(self) -> RunLock:
        own = self.path.with_name(f"{NAME}.{os.getpid()}")
        own.write_text(json.dumps(_owner(os.getpid())), encoding="utf-8")
        try:
            for _ in range(3):
                try:
                    os.link(own, self.path)  # appears whole or not at all, and never over another
                    return self
                except FileExistsError:
                    self._remove_if_stale()
        finally:
            own.unlink(missing_ok=True)
        raise UserError(f"{self.path.parent}: another process is taking this run: try again")

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)

    def _remove_if_stale(self) -> None:
        try:
            owner = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except ValueError:
            owner = {}
        owner = owner if isinstance(owner, dict) else {}
        host = owner.get("host", socket.gethostname())
        if host != socket.gethostname():
            raise UserError(
                f"{self.path.parent}: in use by process {owner.get('pid')} on {host}; when that one is gone, "
                f"delete {self.path}"
            )
        if _alive(owner):
            raise UserError(f"{self.path.parent}: in use by process {owner['pid']}: one run per folder at a time")
        aside = self.path.with_name(f"{NAME}.stale-{os.getpid()}")
        try:
            os.rename(self.path, aside)  # of several processes that see a stale lock, one removes it
        except FileNotFoundError:
            return
        aside.unlink(missing_ok=True)
