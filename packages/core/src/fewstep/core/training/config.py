"""From a YAML file and dotted overrides to a :class:`~fewstep.core.training.settings.RunConfig`.

The names of recipe and domain are found first; a jsonargparse parser of exactly their dataclasses then types every
value. Nothing in a config is an import path: names are looked up among what is installed.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from fewstep.core.domain import Domain, find_domain
from fewstep.core.errors import UserError, nearest
from fewstep.core.recipes import find_recipe
from fewstep.core.training.settings import OptimConfig, RunConfig, TrainConfig, check_phases, dump

SECTIONS = ("recipe", "domain", "train", "optim")
Leaf = tuple[str, Any, Any]


def load_config(source: str | Path | None, overrides: Sequence[str] = (), *, domain: Domain | None = None) -> RunConfig:
    """Return the run config of a YAML file, or of a config shipped with ``domain``, with overrides applied.

    ``source``: a path, a name from the domain's ``configs`` folder, or None for the defaults. ``overrides``:
    ``train.steps=100``, ``--train.steps=100`` or ``--train.steps 100`` (two entries). Raises UserError for whatever is
    wrong, naming the key.
    """
    path = None if source is None else _locate(source, domain)
    raw = {} if path is None else read_settings(path)
    where = "config" if path is None else path.name
    for key, value in split_overrides(overrides):
        _put(raw, key, value)
    return _build(raw, where, Path(path).stem if path else "run", domain)


def _locate(source: str | Path, domain: Domain | None) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1 or path.is_dir():
        raise UserError(f"{source}: no such config file")
    if domain is None:
        raise UserError(
            f"config '{source}': a config is found by name within a domain only; give the path of a YAML file"
        )
    shipped = config_names(domain)
    if str(source) not in shipped:
        advice = nearest(str(source), shipped) if shipped else "it ships none"
        raise UserError(f"domain '{domain.name}' has no config '{source}': {advice}")
    return domain.configs / f"{source}.yaml"


def config_names(domain: Domain) -> list[str]:
    """Return the names of the configs a domain ships."""
    return sorted(path.stem for path in domain.configs.glob("*.yaml"))


class _UniqueKeys(yaml.SafeLoader):
    """YAML without its silent trap: a key given twice is an error, not a lost setting."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{name}' is given twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; UserError with file and line when it cannot be read."""
    try:
        loader = _UniqueKeys(path.read_text(encoding="utf-8"))
        value = loader.get_single_data()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', None) or 'unreadable'})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold settings as 'key: value' lines, holds {_show(value)}")
    return value


def read_settings(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the settings of a YAML file over those of the file it ``extends`` (relative to it); UserError as above."""
    own = read_yaml(path)
    if "extends" not in own:
        return own
    name = own.pop("extends")
    if not isinstance(name, str) or not name.endswith((".yaml", ".yml")):
        raise UserError(f"{path}: extends must name a YAML file, got {_show(name)}")
    parent = (path.parent / name).resolve()
    if parent in (*seen, path.resolve()):
        raise UserError(f"{path}: extends {name}, which extends it in turn: remove one of the two")
    return _over(read_settings(parent, (*seen, path.resolve())), own)


def _over(below: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``own`` over ``below``: groups are joined, everything else is replaced."""
    out = dict(below)
    for key, value in own.items():
        inner = out.get(key)
        out[key] = _over(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return out


def split_overrides(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """Return ``(dotted key, text)`` pairs of overrides; UserError for one that has no value."""
    found, rest = [], list(overrides)
    while rest:
        item = rest.pop(0)
        key, equals, value = item.removeprefix("--").partition("=")
        if not equals:
            if not item.startswith("--") or not rest or rest[0].startswith("--"):
                raise UserError(f"override '{item}': no value given; write {key}=VALUE")
            value = rest.pop(0)
        if not all(key.split(".")):
            raise UserError(f"override '{item}': '{key}' is not a dotted key such as train.steps")
        found.append((key, value))
    return found


def _put(raw: dict[str, Any], key: str, value: str) -> None:
    *groups, last = key.split(".")
    for depth, name in enumerate(groups):
        inner = raw.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UserError(
                f"override '{key}={value}': {'.'.join(groups[: depth + 1])} is a value, not a group of settings"
            )
        raw = inner
    raw[last] = value


def _name_of(raw: Mapping[str, Any], section: str, where: str) -> str | None:
    inner = raw.get(section)
    if inner is None:
        return None
    if not isinstance(inner, Mapping):
        raise UserError(f"{where}: {section} must be a group of settings with a name, got {_show(inner)}")
    name = inner.get("name")
    if name is not None and not isinstance(name, str):
        raise UserError(f"{where}: {section}.name: expected text, got {_show(name)}")
    return name


def _build(raw: dict[str, Any], where: str, default_name: str, domain: Domain | None) -> RunConfig:
    recipe_name, domain_name = _name_of(raw, "recipe", where), _name_of(raw, "domain", where)
    if recipe_name is None:
        raise UserError(f"{where}: recipe.name is missing; `fewstep list` shows the recipes")
    if domain is None:
        if domain_name is None:
            raise UserError(f"{where}: domain.name is missing; `fewstep list` shows the domains")
        domain = find_domain(domain_name)
    elif domain_name not in (None, domain.name):
        raise UserError(f"{where}: this config is for the domain '{domain_name}', not '{domain.name}'")
    recipe = find_recipe(recipe_name)
    schema = {"recipe": recipe.config_type, "domain": domain.config_type, "train": TrainConfig, "optim": OptimConfig}
    hints: dict[str, Any] = {"name": str, "seed": int, **schema}
    values = {key: value for key, value in raw.items() if value is not None or key not in SECTIONS}
    for section in ("recipe", "domain"):
        values[section] = {k: v for k, v in (raw.get(section) or {}).items() if k != "name"}
    leaves = list(_leaves(values, hints, "", where, extra=("recipe.name", "domain.name")))
    typed = _parse(values, schema, leaves, where, default_name)
    config = RunConfig(
        name=typed["name"], seed=typed["seed"], recipe_name=recipe_name, recipe=typed["recipe"],
        domain_name=domain.name, domain=typed["domain"], train=typed["train"], optim=typed["optim"],
    )  # fmt: skip
    check_phases(config, tuple(phase.name for phase in recipe.phases(config.recipe)))
    return config


def _parse(
    values: dict[str, Any], schema: Mapping[str, type], leaves: list[Leaf], where: str, default_name: str
) -> Mapping[str, Any]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--name", type=str, default=default_name)
    parser.add_argument("--seed", type=int, default=0)
    for section, kind in schema.items():
        parser.add_class_arguments(kind, section)
    try:
        typed: Mapping[str, Any] = vars(parser.instantiate(parser.parse_object(values)))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(f"{where}: {_explain(leaves, error)}") from error
    return typed


def _leaves(
    values: Any, hints: Mapping[str, Any], prefix: str, where: str, extra: Sequence[str] = ()
) -> Iterator[Leaf]:
    """Walk settings beside their types; yields ``(dotted key, value, type)`` and raises UserError for unknown keys."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key not in hints:
            valid = [prefix + name for name in hints] + [name for name in extra if name.startswith(prefix)]
            raise UserError(f"{where}: unknown key '{path}', {_advice(path, valid, hints, prefix)}")
        groups = _dataclasses_in(hints[key])
        if groups and not _is_mapping_of(hints[key]):
            if not isinstance(value, Mapping):
                if value is None and type(None) in get_args(hints[key]):
                    continue
                advice = f"set its keys, such as {_example(path, groups)}"
                raise UserError(f"{where}: {path} is a group of settings, got {_show(value)}; {advice}")
            yield from _leaves(value, _fields_of(groups), f"{path}.", where)
        elif groups and isinstance(value, Mapping):
            for name, item in value.items():
                if not isinstance(item, Mapping):
                    raise UserError(f"{where}: {path}.{name} is a group of settings, got {_show(item)}")
                yield from _leaves(item, _fields_of(groups), f"{path}.{name}.", where)
        else:
            if value is None and not _accepts_none(hints[key]):
                raise UserError(f"{where}: {path}: expected {type_name(hints[key])}, got nothing")
            yield path, value, hints[key]


def _advice(path: str, valid: Sequence[str], hints: Mapping[str, Any], prefix: str) -> str:
    close = nearest(path, valid)
    if not prefix and not close.startswith("did you mean"):
        # perhaps a key of a section, given without it
        inner = [f"{section}.{name}" for section in hints for name in _fields_of(_dataclasses_in(hints[section]))]
        matching = [name for name in inner if name.split(".")[-1] == path]
        return f"did you mean '{matching[0]}'?" if matching else close
    return close


def _dataclasses_in(hint: Any) -> list[type]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [found for part in get_args(hint) for found in _dataclasses_in(part)]


def _is_mapping_of(hint: Any) -> bool:
    origin = get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _accepts_none(hint: Any) -> bool:
    return hint is Any or hint is type(None) or type(None) in get_args(hint)


def _fields_of(groups: Sequence[type]) -> dict[str, Any]:
    return {
        f.name: typing.get_type_hints(group)[f.name] for group in groups for f in dataclasses.fields(group) if f.init
    }


def _example(path: str, groups: Sequence[type]) -> str:
    names = list(_fields_of(groups))
    return f"{path}.{names[0]}" if names else path


def _explain(leaves: Sequence[Leaf], error: Exception) -> str:
    """Return which of the settings has the wrong type, and which type is expected."""
    for path, value, hint in leaves:
        single = ArgumentParser(exit_on_error=False)
        single.add_argument("--value", type=hint)
        try:
            single.parse_object({"value": value})
        except (ArgumentError, TypeError, ValueError):
            return f"{path}: expected {type_name(hint)}, got {_show(value)}"
    return " ".join(str(error).split())


def type_name(hint: Any) -> str:
    """Return a type annotation in words a user of a config knows."""
    origin, args = get_origin(hint), get_args(hint)
    simple = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        Path: "a path",
        type(None): "null",
    }
    if hint in simple:
        return simple[hint]
    if origin is typing.Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(str(arg) for arg in args)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(arg) for arg in args)
    if origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        if origin is tuple and args and args[-1] is not Ellipsis:
            return f"a list of {len(args)}: " + "; ".join(type_name(arg) for arg in args)
        return f"a list, each {type_name(args[0])}" if args else "a list"
    return "a mapping" if _is_mapping_of(hint) else getattr(hint, "__name__", str(hint))


def _show(value: Any) -> str:
    text = f"'{value}'" if isinstance(value, str) else str(value)
    return "nothing" if value is None else text if len(text) <= 60 else text[:57] + "..."


__all__ = ["RunConfig", "config_names", "dump", "load_config", "read_yaml", "split_overrides", "type_name"]
