"""Studies beside each other: one corner for all hypervolumes, and the settings in which they differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dashboards.analysis.axes import Axis
from dashboards.analysis.tables import Column, Row, Table, row
from dashboards.analysis.trials import Found
from studies.pareto import volume_of_points
from studies.records.objectives import reference_text, shown_volume, volume_unit

# Where a study runs, and where its results go, is no difference between results.
_OF_THE_MACHINE = ("out", "ray_address")
# Settings of where a study runs: seeds that run on several machines belong together all the same.
WHERE_IT_RUNS = {
    *("device", "dtype", "device_map", "workers", "gpu_workers", "gpu_share"),
    *("ray_address", "trial_timeout", "prefix_mb", "export", "out"),
}


@dataclass(frozen=True)
class Volumes:
    """Hypervolumes of the fronts of several studies, up to the same corner.

    Attributes:
        reference: The corner.
        of: The hypervolume by study.
        left_out: The reason by study for those that it cannot be measured for.
        objectives: The objectives that the studies have in common.
    """

    reference: tuple[float, ...]
    of: Mapping[str, float]
    left_out: Mapping[str, str]
    objectives: tuple[str, ...]


def common_volumes(studies: Mapping[str, Found]) -> Volumes:
    """Hypervolumes of studies of the same objectives as the first one that has any trial to compare.

    Args:
        studies: Trials of each study, by name.
    """
    left_out = {
        name: "no trial has finished on the whole search set" for name, f in studies.items() if not len(f.front())
    }
    usable = {name: found for name, found in studies.items() if name not in left_out}
    if not usable:
        return Volumes((), {}, left_out, ())
    first, found = next(iter(usable.items()))
    objectives = found.objectives
    for name, other in usable.items():
        if other.objectives != objectives:
            own, others = (" and ".join(Axis(one).title for one in each) for each in (other.objectives, objectives))
            left_out[name] = f"it trades {own}, and {first} trades {others}"
    fronts = {name: one.columns.values[one.front()] for name, one in usable.items() if name not in left_out}
    dense = [cost for name in fronts if (cost := usable[name].dense_cost) is not None]
    # The corner takes in every study: that of the dearest dense model.
    measured = volume_of_points(objectives, np.concatenate([*fronts.values()]), max(dense, default=None))
    volumes = {
        name: max((volume for _, volume in measured.growth(front)), default=0.0) for name, front in fronts.items()
    }
    return Volumes(measured.reference, volumes, left_out, objectives)


def volumes_table(volumes: Volumes, studies: Mapping[str, Found]) -> Table:
    """Hypervolumes with the corner that they reach up to; a row each study."""
    most = max(volumes.of.values(), default=0.0)
    rows = [
        row(
            [
                name,
                str(len(studies[name].comparable)),
                str(len(studies[name].front())),
                f"{shown_volume(volume, volumes.objectives):.4g}",
                f"{volume / most:.0%}" if most > 0 else "–",
            ]
        )
        for name, volume in volumes.of.items()
    ]
    corner = reference_text(volumes.reference, volumes.objectives) if volumes.of else ""
    return Table(
        (
            Column("study"),
            Column("comparable trials"),
            Column("on the front"),
            Column("hypervolume", volume_unit(volumes.objectives) if volumes.of else ""),
            Column("of the largest"),
        ),
        tuple(rows),
        f"Up to the same corner for all studies: {corner}. Each front is of what its study searched on.",
    )


def but_for_seed(config: Mapping[str, Any]) -> str:
    """What is the same for studies that differ in their seed, and in where they run, alone."""
    left_out = {"seed", *WHERE_IT_RUNS}
    return json.dumps({key: config[key] for key in sorted(config) if key not in left_out}, default=str)


def differing_settings(configurations: Mapping[str, Mapping[str, Any]]) -> Table:
    """The settings in which studies differ, a row each, and a column for each study."""
    names = sorted({name for config in configurations.values() for name in config} - {*_OF_THE_MACHINE})
    rows: list[Row] = []
    for name in names:
        values = [_text(config.get(name)) for config in configurations.values()]
        if len(set(values)) > 1:
            rows.append(row([name.replace("_", " "), *values]))
    columns = (Column("setting"), *map(Column, configurations))
    return Table(columns, tuple(rows), "All other settings are the same.")


def _text(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
