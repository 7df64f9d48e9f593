"""Files that are not there: few are left out with a warning, many are refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fewstep.core.errors import UserError

log = logging.getLogger("fewstep.data")


def left_out(where: str, missing: Sequence[str], total: int, max_bad_share: float, advice: str) -> None:
    """Log what is missing, in words, of ``total``; UserError for more than ``max_bad_share`` of it, or all."""
    if not missing:
        return
    message = f"{where}: {len(missing)} of {total} pictures are missing, the first: {missing[0]}"
    if len(missing) == total or len(missing) / total > max_bad_share:
        raise UserError(f"{message}; {advice}, or raise domain.data.max_bad_share={max_bad_share:g}")
    log.warning("%s; they are left out", message)
