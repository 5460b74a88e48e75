"""Plans sweeps: one study for each model, target and seed, from a YAML file or from a number of repeats."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from search.config.file import PATHS, anchored
from search.config.run_config import OF_NEW_STUDIES, RunConfig, suggestion
from search.config.study_name import normalised
from search.config.yaml_file import Key, YamlFile, read_yaml
from search.errors import ConfigError
from studies.records.target import TargetKind

# The field that each of the lists gives values of; of those of targets, a file has one.
_TARGET_LISTS: Mapping[str, TargetKind] = {
    "targets": "target_sparsity",
    "targets_flops_saved": "target_flops_saved",
    "targets_speedup": "target_speedup",
}
_KEYS = ("name", "models", *_TARGET_LISTS, "seeds", "base")
# What targets are called in names of studies.
_SHORT: Mapping[TargetKind, str] = {"target_sparsity": "t", "target_flops_saved": "flops", "target_speedup": "speedup"}
# Fields that are the same for all studies.
_OF_ALL = ("ray_address", "out")


@dataclass(frozen=True)
class PlannedStudy:
    """One study of a sweep.

    Attributes:
        name: Name of the study.
        model: Name of its model in tables.
        config: Its configuration.
    """

    name: str
    model: str
    config: RunConfig


@dataclass(frozen=True)
class Sweep:
    """Studies that belong together.

    Attributes:
        name: Name of the sweep, normalised as those of its studies.
        studies: Its studies, in the order in which they run.
        folder: Folder of their comparison.
    """

    name: str
    studies: tuple[PlannedStudy, ...]
    folder: Path


def repeated(name: str, config: RunConfig, repeats: int) -> Sweep:
    """A sweep of one study with several seeds, from that of the configuration on.

    Args:
        name: Name of the sweep; that of a study ends with its seed.
        config: Configuration of the studies; `out` is the folder of them all.
        repeats: Number of seeds.

    Raises:
        ConfigError: A seed is out of range.
    """
    RunConfig.checked(seed=config.seed + repeats - 1)
    studies = tuple(
        _study(f"{name}-s{seed}", _label(config.model), config.model_copy(update={"seed": seed}))
        for seed in range(config.seed, config.seed + repeats)
    )
    return Sweep(normalised(name), studies, config.folder(name))


def read_sweep(path: Path) -> Sweep:
    """Reads a sweep: every model of `models` with every target and every one of `seeds`, and with what `base` says.

    Targets are listed under `targets`, which are overall sparsities, `targets_flops_saved` or `targets_speedup`. Names
    of studies are made of the sweep's, the model's, the target and the seed, as far as the file lists them.

    Raises:
        ConfigError: It is no such file; the message says where.
    """
    file = read_yaml(path)
    for key in file.values:
        if key not in _KEYS:
            raise ConfigError(f"{file.place(key)}: {key} is unknown: {suggestion(key, _KEYS)}")
    name = file.values.get("name", path.stem)
    if not isinstance(name, str):
        raise ConfigError(f"{file.place('name')}: name is {name!r}: expected text.")
    if not set(file.values) - {"name"}:
        raise ConfigError(f"{path} names no study: expected one or more of {', '.join(_KEYS[1:])}, such as 'seeds: 3'.")
    base = _part(file, ("base",), file.values.get("base") or {}, _listed(file))
    studies: dict[str, PlannedStudy] = {}
    for model, target, seed in product(_models(file), _targets(file), _seeds(file)):
        config = _config(file, (base, model, target, seed))
        label = model.label or _label(config.model)
        one = _study("-".join([name, *_name_parts(file, label, config)]), label, config)
        if one.name in studies:
            raise ConfigError(
                f"{path}: two studies would be called {one.name!r}: list every target and seed once, and give models "
                "that are called alike a name each, such as {name: large, model: ./models/large}."
            )
        studies[one.name] = one
    return Sweep(normalised(name), tuple(studies.values()), RunConfig.checked(out=base.values.get("out")).folder(name))


@dataclass(frozen=True)
class _Part:
    """Fields of a configuration from one place of a file.

    Attributes:
        keys: Keys that lead to the place.
        values: The fields.
        label: Name of a model in names of studies and tables; empty for its own name.
    """

    keys: tuple[Key, ...]
    values: Mapping[str, Any]
    label: str = ""


def _study(name: str, model: str, config: RunConfig) -> PlannedStudy:
    """A study whose files go to a folder of its own in that of the sweep, if it has one."""
    name = normalised(name)
    if config.out is not None:
        config = config.model_copy(update={"out": str(Path(config.out) / name)})
    return PlannedStudy(name, model, config)


def _label(model: str) -> str:
    """The name of a model in names of studies and tables: the last part of its directory or id."""
    return re.sub(r"[^\w.-]+", "-", Path(model).name).strip("-.") or "model"


def _name_parts(file: YamlFile, label: str, config: RunConfig) -> list[str]:
    """The parts of a study's name that tell it from the others of its sweep: what the file lists."""
    target = config.target
    aim = "any" if target is None else f"{_SHORT[target.kind]}{target.value:g}"
    parts = {"models": label, **dict.fromkeys(_TARGET_LISTS, aim), "seeds": f"s{config.seed}"}
    return [part for key, part in parts.items() if key in file.values]


def _config(file: YamlFile, parts: tuple[_Part, ...]) -> RunConfig:
    """The configuration that parts of a file make, later ones before earlier ones."""

    def called(field: str) -> str:
        return next(f"{file.place(*part.keys, field)}: {field}" for part in reversed(parts) if field in part.values)

    values: dict[str, Any] = {}
    for part in parts:
        values |= part.values
    return RunConfig.checked(called, **values)


def _listed(file: YamlFile) -> dict[str, str]:
    """Fields that have no place but in the file's lists, and the key that each belongs under.

    Raises:
        ConfigError: Targets of several kinds are listed, which no study has.
    """
    fields = {field: key for field, key in (("model", "models"), ("seed", "seeds")) if key in file.values}
    targets = [key for key in _TARGET_LISTS if key in file.values]
    if len(targets) > 1:
        raise ConfigError(
            f"{file.place(targets[1])}: {' and '.join(targets)} are all given: expected targets of one kind."
        )
    for listed in targets:
        for key, field in _TARGET_LISTS.items():
            fields[field] = key if key == listed else f"{key} instead of {listed}"
    return fields


def _part(file: YamlFile, keys: tuple[Key, ...], values: Any, elsewhere: Mapping[str, str], label: str = "") -> _Part:
    """Fields from one place.

    Args:
        file: The file.
        keys: Keys that lead to the place.
        values: Value that stands there.
        elsewhere: Fields that have no place there, with the keys that they belong under; see `_listed`.
        label: Name of the model, as in `_Part`.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{file.place(*keys)}: {keys[0]} is {values!r}: expected settings such as 'trials: 300'.")
    for field in values:
        place = f"{file.place(*keys, field)}: {field}"
        if field in elsewhere:
            raise ConfigError(f"{place} has no place here: give it under {elsewhere[field]}.")
        if field not in OF_NEW_STUDIES:
            raise ConfigError(f"{place} is unknown: {suggestion(str(field), OF_NEW_STUDIES)}")
    absolute = anchored(values, PATHS, file.folder, lambda field: f"{file.place(*keys, field)}: {field}")
    return _Part(keys, absolute, label)


def _models(file: YamlFile) -> list[_Part]:
    if "models" not in file.values:
        return [_Part((), {})]
    elsewhere = {**_listed(file), **dict.fromkeys(_OF_ALL, "base")}
    del elsewhere["model"]
    parts = []
    for position, entry in enumerate(_list(file, "models")):
        keys: tuple[Key, ...] = ("models", position)
        values = {"model": entry} if isinstance(entry, str) else entry
        if not isinstance(values, dict) or not isinstance(values.get("model"), str):
            raise ConfigError(
                f"{file.place(*keys)}: one of models is {entry!r}: expected a model, or settings with one, such as "
                "{model: ./my-llama, data: train.jsonl}."
            )
        fields = {key: value for key, value in values.items() if key != "name"}
        label = _label(str(values.get("name", values["model"])))
        parts.append(_part(file, keys, fields, elsewhere, label))
    return parts


def _targets(file: YamlFile) -> list[_Part]:
    return [
        _Part((key, at), {field: value})
        for key, field in _TARGET_LISTS.items()
        if key in file.values
        for at, value in enumerate(_list(file, key))
    ] or [_Part((), {})]


def _seeds(file: YamlFile) -> list[_Part]:
    if "seeds" not in file.values:
        return [_Part((), {})]
    seeds = file.values["seeds"]
    if isinstance(seeds, int) and not isinstance(seeds, bool) and seeds >= 1:
        # A number of seeds, not one of them.
        return [_Part(("seeds",), {"seed": seed}) for seed in range(seeds)]
    return [_Part(("seeds", at), {"seed": value}) for at, value in enumerate(_list(file, "seeds"))]


def _list(file: YamlFile, key: str) -> list[Any]:
    found = file.values[key]
    if not isinstance(found, list) or not found:
        number = " or a number of them" if key == "seeds" else ""
        raise ConfigError(f"{file.place(key)}: {key} is {found!r}: expected a list{number}.")
    return found
