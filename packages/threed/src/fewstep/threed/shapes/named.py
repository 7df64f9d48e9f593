"""Lists of prompts: those of the world of solids by name, lines of a file, or one prompt as it stands."""

from __future__ import annotations

from pathlib import Path

from fewstep.core.data.prompts import read_prompts
from fewstep.threed.shapes.prompts import all_prompts

SETS = ("things", "on", "all")


def named_prompts(name: str) -> list[str]:
    """Return the prompts that ``name`` means.

    ``things``: single solids; ``on``: these, and one solid on another; ``all``: the whole grammar; the path of a text
    file: its lines; anything else is a prompt itself. Raises UserError for a file without prompts.
    """
    prompts = all_prompts()
    if name == "things":
        return [str(each) for each in prompts if each.other is None]
    if name == "on":
        return [str(each) for each in prompts if each.relation in ("", "on")]
    if name == "all":
        return [str(each) for each in prompts]
    if Path(name).suffix == ".txt":
        return read_prompts(Path(name))
    return [name]
