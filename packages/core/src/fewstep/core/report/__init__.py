"""Self-contained HTML pages: the report of a run, and the comparison of several students."""

from fewstep.core.report.comparison import build_comparison
from fewstep.core.report.run import build_report

__all__ = ["build_comparison", "build_report"]
