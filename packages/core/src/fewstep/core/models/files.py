"""A diffusers pipeline on disk: found, looked through for what must not be loaded, and read one component at a time.

Only classes that diffusers and transformers export are ever instantiated, and only safetensors are read. A folder that
brings code of its own is refused before anything of it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from fewstep.core.errors import UserError, check

INDEX = "model_index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack")
LIBRARIES = ("diffusers", "transformers")
UNUSED = ("safety_checker",)  # of Stable Diffusion 1.x, a class inside diffusers' own pipelines: never loaded
DOWNLOADED = ("*.json", "*.txt", "*.model", "*.jinja", "README.md")
VARIANTS = ("*.fp16*", "*.bf16*", "*.non_ema*", "*.fp8*")


@dataclass(frozen=True)
class PipelineFolder:
    """A verified pipeline folder: ``pipeline`` is its class, ``parts`` maps components to (library, class)."""

    path: Path
    pipeline: str
    parts: Mapping[str, tuple[str, str]]
    options: Mapping[str, Any]
    name: str
    variant: str | None = None

    @classmethod
    def find(cls, name: str, revision: str = "", variant: str = "", *, weights: bool = True) -> PipelineFolder:
        """Return the folder a teacher's name means: a local path, or a hub id, which is then downloaded.

        ``weights``: whether they are needed, too, or configurations and vocabularies are enough. Raises UserError for
        what is no pipeline, and for one with pickled weights or code of its own.
        """
        given = Path(name).expanduser()
        path = given if given.exists() else download(name, revision, variant, weights=weights)
        return cls.open(path, name, variant)

    @classmethod
    def open(cls, path: Path, name: str = "", variant: str = "") -> PipelineFolder:
        """Return the pipeline of a local folder; UserError as in :meth:`find`."""
        check(path.is_dir(), f"{path}: not a folder; give the folder of a diffusers pipeline")
        check((path / INDEX).is_file(), f"{path}: no {INDEX} there; give the folder of a whole diffusers pipeline")
        index = read_json(path / INDEX)
        pipeline = index.get("_class_name")
        if not isinstance(pipeline, str):
            raise UserError(f"{path / INDEX}: custom pipeline code ({pipeline}) is never run; use a stock pipeline")
        parts: dict[str, tuple[str, str]] = {}
        options: dict[str, Any] = {}
        for key, value in index.items():
            if key.startswith("_") or key in UNUSED:
                continue
            if not isinstance(value, list):
                options[key] = value
            elif len(value) == 2 and all(isinstance(each, str) for each in value):
                _check_part(path, key, value[0], value[1])
                parts[key] = (value[0], value[1])
        code = sorted(file.relative_to(path).as_posix() for file in path.rglob("*.py"))
        check(not code, f"{path}: brings code of its own ({', '.join(code[:3])}), which is never run; remove it")
        return cls(path, pipeline, parts, options, name or str(path), variant or None)

    def has(self, part: str) -> bool:
        """Return whether a component is there."""
        return part in self.parts

    def pipeline_class(self) -> Any:
        """Return the pipeline's class; UserError when the installed diffusers has none of that name."""
        return _class("diffusers", self.pipeline, self.path / INDEX)

    def config(self, part: str) -> dict[str, Any]:
        """Return a component's configuration; UserError when it cannot be read."""
        names = ("scheduler_config.json",) if part == "scheduler" else ("config.json", "tokenizer_config.json")
        for name in names:
            if (self.path / part / name).is_file():
                return read_json(self.path / part / name)
        raise UserError(f"{self.path}: component '{part}' is missing (no {part}/{names[0]}): download the folder again")

    def load(self, part: str, dtype: torch.dtype | None = None) -> Any:
        """Return a component, modules in eval mode and in ``dtype``; UserError when it is missing or pickled."""
        if part not in self.parts:
            raise UserError(f"{self.path}: this {self.pipeline} has no component '{part}'")
        library, name = self.parts[part]
        folder = self.path / part
        check(folder.is_dir(), f"{self.path}: component '{part}' is missing: download the folder again")
        kind = _class(library, name, self.path / INDEX)
        options: dict[str, Any] = {"local_files_only": True}
        if issubclass(kind, nn.Module):
            check_weights(folder, self.variant)
            options |= {"use_safetensors": True, "variant": self.variant}
            options["dtype" if library == "transformers" else "torch_dtype"] = dtype or torch.float32
        elif library == "transformers" and (folder / "tokenizer.json").is_file():
            options["tokenizer_file"] = str(folder / "tokenizer.json")
        with quiet(), readable(folder, name):
            loaded = kind.from_pretrained(folder, **options)
        return loaded.eval() if isinstance(loaded, nn.Module) else loaded

    def is_module(self, part: str) -> bool:
        """Return whether a component is a network."""
        return issubclass(self.module_class(part), nn.Module)

    def module_class(self, part: str) -> type:
        """Return a component's class; UserError when the installed library has none of that name."""
        found: type = _class(*self.parts[part], self.path / INDEX)
        return found

    def skeleton(self, part: str) -> nn.Module:
        """Return a module component without its weights: shapes on the meta device."""
        library, name = self.parts[part]
        with torch.device("meta"), quiet(), readable(self.path / part, name):
            kind = _class(library, name, self.path / INDEX)
            if library == "diffusers":
                made: nn.Module = kind.from_config(kind.load_config(self.path / part))
            else:
                made = kind(kind.config_class.from_pretrained(self.path / part))
        return made.eval()


def download(name: str, revision: str = "", variant: str = "", *, weights: bool = True, what: str = "teacher") -> Path:
    """Return the local copy of a hub repository's safetensors, configs and tokenizers; UserError when it fails.

    Weights of other variants are left out where none is asked for. ``what``: it is, in errors.
    """
    parts = name.split("/")
    looks_local = len(parts) != 2 or not all(parts) or name.startswith((".", "~", "/"))
    check(not looks_local, f"{what} '{name}': no such folder, and not a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=[*DOWNLOADED, *(["*.safetensors"] if weights else [])],
            ignore_patterns=[] if variant else list(VARIANTS),
        )
        return Path(found)
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{what} '{name}': no such folder, and the hub does not give it ({line})") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; UserError when there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: download the folder again") from error
    check(isinstance(found, dict), f"{path}: must hold a JSON object: download the folder again")
    return dict(found)


def check_weights(folder: Path, variant: str | None = None) -> None:
    """Raise UserError unless a component's weights are there as safetensors."""
    found = [file for file in folder.glob("*.safetensors") if variant is None or f".{variant}." in file.name]
    if found:
        return
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if pickled:
        raise UserError(
            f"{folder}: weights are pickled ({pickled[0]}), which is never loaded: convert them to safetensors"
        )
    which = f" of variant '{variant}'" if variant else ""
    raise UserError(f"{folder}: no safetensors{which} there: download the folder again")


def _check_part(path: Path, key: str, library: str, name: str) -> None:
    check(
        library in LIBRARIES,
        f"{path / INDEX}: component '{key}' wants the class {library}.{name}; custom code is never run, "
        f"only classes of {' and '.join(LIBRARIES)}",
    )
    file = path / key / "config.json"
    if file.is_file() and "auto_map" in read_json(file):
        raise UserError(f"{file}: 'auto_map' asks for code of the repository's own, which is never run; remove it")


def _class(library: str, name: str, where: Path) -> Any:
    import diffusers
    import transformers

    with quiet():  # importing a pipeline tells what of it wants torchvision
        found = getattr({"diffusers": diffusers, "transformers": transformers}[library], name, None)
    if not isinstance(found, type) or not hasattr(found, "from_pretrained"):
        raise UserError(f"{where}: unknown class '{name}': the installed {library} has none of that name, upgrade it")
    return found


@contextmanager
def readable(folder: Path, name: str) -> Iterator[None]:
    """Make one line of what a library says of a folder it cannot load a ``name`` from."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder}: cannot be read as a {name} ({line})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Let diffusers and transformers report errors only, for what is inside: what matters is said by us, once."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggers = (diffusers_logging, transformers_logging)
    before = [(each.get_verbosity(), each.is_progress_bar_enabled()) for each in loggers]
    for each in loggers:
        each.set_verbosity_error()
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each, (verbosity, bar) in zip(loggers, before, strict=True):
            each.set_verbosity(verbosity)
            if bar:
                each.enable_progress_bar()
