"""Laws of distillation, run on a recipe and its config: one's own, or those that come with the package.

>>> from fewstep.core.check import format_results, run
>>> from fewstep.core.recipes.diff_instruct import DiffInstruct, DiffInstructConfig
>>> all(result.passed for result in run(DiffInstruct, DiffInstructConfig()))
True
"""

from fewstep.core.check.declarations import Claims
from fewstep.core.check.result import LawResult, format_results
from fewstep.core.check.suite import run

__all__ = ["Claims", "LawResult", "format_results", "run"]
