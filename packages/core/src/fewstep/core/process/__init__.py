"""Noising processes: ``x_t = alpha(t) x0 + anchor(t) y + sigma(t) eps``.

**The time convention of the whole project.** ``t`` is a process's own clock: a per-sample tensor that grows with
noise, from ``t_min`` to ``t_max``. It is an index for table processes (fractions allowed), the noise level for EDM, the
noise fraction for rectified flow and an angle for TrigFlow. Nothing outside this package and the adapters of networks
needs to know which. Three maps connect the clocks:

* ``unit_to_time(u)``: the natural uniform clock of the process, ``u`` in [0, 1] (0 = least noise). It is linear in
  ``t``, except EDM, where it is the Karras ramp, and rectified flow, where it applies ``shift``.
* ``tau(t) = sigma/alpha``: the noise level in variance-exploding coordinates, common to all processes.
* ``log_snr(t) = log(alpha^2 / sigma^2)``.

Coefficients are computed and returned in float64, whatever the dtype of ``t``; :func:`fewstep.core.tensors.expand_to`
brings them to the dtype maths on a tensor uses (float32 at least).
"""

from fewstep.core.process.base import Coefficients, Process, Times, times
from fewstep.core.process.continuous import EDM, CosineVP, RectifiedFlow, TrigFlow
from fewstep.core.process.scheduler import process_from_scheduler
from fewstep.core.process.tables import VP, LocalOffset, ResidualShift

__all__ = [
    "EDM",
    "VP",
    "Coefficients",
    "CosineVP",
    "LocalOffset",
    "Process",
    "RectifiedFlow",
    "ResidualShift",
    "Times",
    "TrigFlow",
    "process_from_scheduler",
    "times",
]
