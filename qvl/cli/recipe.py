"""Recipe files: YAML -> `TrainConfig`, and every way to get one wrong.

Knows: the shape of the configuration classes. Does not know: what a recipe does.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from qvl.cli.arguments import one_message
from qvl.train.config import StageConfig, TrainConfig

FINAL = "final"
"""What the last evaluation of a run is called; no stage may be."""


def read_recipe(
    path: str | Path, changes: Mapping[str, Any] | None = None, settings: Sequence[str] = ()
) -> TrainConfig:
    """Reads a recipe, and the one it builds on (`base`).

    Args:
        changes: top-level values to use instead of the file's; None leaves the file's.
        settings: `KEY=VALUE` with a dotted key and a YAML value; a stage is named or numbered:
            `stages.chat.optim.lr=1e-4` or `stages.2.optim.lr=1e-4`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an unknown key (with the nearest known one), a value of the wrong type or out of range.
    """
    file = Path(path)
    found = _load(file)
    found |= {key: value for key, value in (changes or {}).items() if value is not None}
    for setting in settings:
        apply_setting(found, setting)
    return as_config(found, str(file))


def _load(file: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's plain values. With `base: FILE` they are those of another recipe, overlaid with the file's own
    top-level values and changed by its `set` (dotted key -> value). `above`: the recipes that build on this one."""
    if not file.is_file():
        near = ", ".join(str(p) for p in sorted(file.parent.glob("*.yaml"))) or "none"
        raise FileNotFoundError(f"there is no recipe {file}; recipes in that folder: {near}")
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} must hold keys and values (run, stages, ...), not {type(found).__name__}")
    found = json.loads(json.dumps(found, default=str))  # YAML anchors share objects; a setting must change one place
    base, settings = found.pop("base", None), found.pop("set", {})
    if base is not None:
        if not isinstance(base, str):
            raise ValueError(f"{file}: base must be the path of one recipe, got {base!r}")
        family = (*above, file.resolve())
        if (file.parent / base).resolve() in family:
            raise ValueError(f"{file} is its own base" + (f", by way of {above[-1].name}" if above else ""))
        found = _load(file.parent / base, family) | found
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: set must hold dotted keys and values, got {settings!r}")
    for key, value in settings.items():
        _put(found, key.split("."), value, key)
    return found


def as_config(data: dict[str, Any], source: str) -> TrainConfig:
    """A typed recipe from plain data. Raises `ValueError` naming `source` and the key."""
    _check_keys(TrainConfig, data, source, "")
    if not data.get("stages"):
        raise ValueError(f"{source}: stages is empty; a recipe has at least one stage")
    try:
        config = _typed(TrainConfig, data)
    except ValueError as error:
        stages = data["stages"] if isinstance(data["stages"], list) else []
        for number, stage in enumerate(stages):  # which stage it is, the parser does not say
            try:
                _typed(StageConfig, stage)
            except ValueError as inner:
                raise ValueError(f"{source}: stages.{number}: {inner}") from inner
        raise ValueError(f"{source}: {error}") from error
    names = [stage.name for stage in config.stages]
    if len(set(names)) != len(names) or FINAL in names:
        raise ValueError(
            f"{source}: stages are called {', '.join(names)}; give each a name of its own, other than {FINAL!r}"
        )
    return config


def _typed(kind: type, data: dict[str, Any]) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "recipe")
    try:
        return parser.instantiate(parser.parse_object({"recipe": data})).recipe
    except (ArgumentError, ValueError) as error:
        raise ValueError(one_message(error)) from error


def recipe_text(config: TrainConfig) -> str:
    """The whole recipe as YAML, defaults included; `read_recipe` reads it back to an equal object."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def differences(old: TrainConfig, new: TrainConfig, ignore: Sequence[str] = ()) -> list[str]:
    """Where two recipes differ: `stages.1.optim.lr: 0.001 -> 0.002`. `ignore`: top-level keys that may."""
    a, b = (json.loads(json.dumps(dataclasses.asdict(config))) for config in (old, new))
    flat_a, flat_b = _flat(a), _flat(b)
    keys = [key for key in flat_a | flat_b if key.split(".")[0] not in ignore]
    nothing = "(nothing)"
    return [
        f"{key}: {flat_a.get(key, nothing)} -> {flat_b.get(key, nothing)}"
        for key in keys
        if flat_a.get(key, nothing) != flat_b.get(key, nothing)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in items:
        found |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def _check_keys(kind: type, data: Any, source: str, where: str) -> None:
    """Walks data and dataclasses side by side; values of a wrong type are left to the parser.

    Where one of several words is meant and one of them is written in digits, the number that YAML reads becomes it.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{source}: {where[:-1]} must hold keys and values, got {data!r}")
    hints = get_type_hints(kind)
    for key, value in data.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, 1, cutoff=0.5)
            meant = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(hints)}"
            raise ValueError(f"{source}: unknown key {where + str(key)!r}; {meant}")
        if value is None and type(None) not in get_args(hints[key]):
            raise ValueError(f"{source}: {where}{key} has no value; give it one or leave the line out")
        inner = _dataclass_in(hints[key])
        if inner is None or value is None:
            if type(value) is int and str(value) in _words_in(hints[key]):
                data[key] = str(value)
            continue
        if isinstance(value, list):
            for number, item in enumerate(value):
                _check_keys(inner, item, source, f"{where}{key}.{number}.")
        elif get_origin(hints[key]) is not tuple or isinstance(value, dict):
            _check_keys(inner, value, source, f"{where}{key}.")


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass of `X`, `tuple[X, ...]` or `X | None`."""
    if dataclasses.is_dataclass(hint):
        return hint if isinstance(hint, type) else None
    if get_origin(hint) in (tuple, list, Union, types.UnionType):
        return next((found for found in map(_dataclass_in, get_args(hint)) if found), None)
    return None


def _words_in(hint: Any) -> tuple[Any, ...]:
    """The words of `Literal[...]` or `Literal[...] | None`."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(word for inner in get_args(hint) for word in _words_in(inner))


def apply_setting(recipe: dict[str, Any], setting: str) -> None:
    """Changes one value of a recipe's plain data: `KEY=VALUE`. Raises `ValueError` as `read_recipe`."""
    path, equals, text = setting.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ValueError(f"--set takes KEY=VALUE such as stages.chat.optim.lr=1e-4, got {setting!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {setting}: {text!r} is not a YAML value: {error}") from error
    _put(recipe, keys, value, setting)


def _put(recipe: dict[str, Any], keys: list[str], value: Any, setting: str) -> None:
    place: Any = recipe
    for depth, key in enumerate(keys[:-1]):
        place = _step(place, key, ".".join(keys[: depth + 1]))
    if isinstance(place, list):
        place[_index(place, keys[-1], ".".join(keys))] = value
    elif isinstance(place, dict):
        place[keys[-1]] = value
    else:
        raise ValueError(f"--set {setting}: {'.'.join(keys[:-1])} is a single value, it has no {keys[-1]!r}")


def _step(place: Any, key: str, path: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, key, path)]
    if not isinstance(place, dict):
        raise ValueError(f"--set: {path!r} goes into a single value")
    return place.setdefault(key, {})


def _index(items: list[Any], key: str, path: str) -> int:
    if key.isdigit() and int(key) < len(items):
        return int(key)
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if key in names:
        return names.index(key)
    known = ", ".join(str(name) for name in names if name) or f"0 to {len(items) - 1}"
    raise ValueError(f"--set: there is no {path!r}; known are: {known}")
