"""Latency profiles of a database: what was measured on such a machine is used again, the rest is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ftp_core.cost.conditions import Conditions, profile_conditions
from ftp_core.cost.profile import LatencyProfile
from ftp_core.cost.profiling import count_passes, profile_latency
from ftp_core.skipping_model import SkippingModel
from search.errors import SearchError
from search.progress import ProgressView, Stage
from studies import StudyStore


@dataclass(frozen=True)
class Profiled:
    """A latency profile, and which parts of it were not measured for this.

    Attributes:
        profile: Of all shapes that were asked for.
        known: Batches and lengths that were known already, with when they were measured.
    """

    profile: LatencyProfile
    known: tuple[tuple[int, int, str], ...] = ()


def profile_of(
    store: StudyStore,
    model: SkippingModel,
    shapes: Sequence[tuple[int, int]],
    view: ProgressView,
    remeasure: bool = False,
) -> Profiled:
    """A latency profile of a model on this machine, from the database as far as it is there.

    Args:
        store: Keeps profiles, those of other machines among them.
        model: The model, on the device and in the precision that it shall be measured in.
        shapes: Batches and lengths, each a pair.
        view: Where progress is drawn, and doubts are said.
        remeasure: Whether to measure again what is there.

    Raises:
        DataError: A length is more than the model reads.
    """
    conditions = profile_conditions(model)
    known: dict[tuple[int, int], LatencyProfile] = {}
    if not remeasure:
        for shape in shapes:
            stored = store.latency_profile(conditions.fingerprint(*shape))
            if stored is not None:
                known[shape] = LatencyProfile.from_json(stored)
    parts, missing = list(known.values()), [shape for shape in shapes if shape not in known]
    if missing:
        with view.stage("Profiling latency", count_passes(missing)) as stage:
            # One by one, so that those that are done are kept whatever becomes of the next.
            for shape in missing:
                parts += keep_profile(store, _measured(model, shape, stage), replace=remeasure)
    profile = LatencyProfile.joined(parts)
    say_doubts(profile, view)
    return Profiled(
        profile, tuple((s.batch, s.length, s.measured_at) for s in profile.shapes if (s.batch, s.length) in known)
    )


def _measured(model: SkippingModel, shape: tuple[int, int], stage: Stage) -> LatencyProfile:
    try:
        return profile_latency(model, [shape], stage.advance)
    except torch.OutOfMemoryError as error:
        raise SearchError(
            f"There is not enough memory for {shape[0]} x {shape[1]} tokens: profile smaller batches or lengths."
        ) from error


def keep_profile(store: StudyStore, profile: LatencyProfile, replace: bool) -> list[LatencyProfile]:
    """Keep a profile that was measured here, each shape by itself, so that each is found again.

    Args:
        store: Where.
        profile: The profile; its conditions are known.
        replace: Whether it takes the place of an earlier one.

    Returns:
        What is kept: another process may have been faster.
    """
    assert profile.conditions is not None
    kept = []
    for part in profile.parts():
        fingerprint = profile.conditions.fingerprint(part.batch, part.length)
        facts = {**profile.conditions.to_json(), "batch": part.batch, "length": part.length}
        kept.append(LatencyProfile.from_json(store.keep_latency_profile(fingerprint, facts, part.to_json(), replace)))
    return kept


def say_doubts(profile: LatencyProfile, view: ProgressView) -> None:
    """Say why a profile is not to be relied on, if it is not."""
    for doubt in profile.doubts():
        view.console.print(
            f"The machine was busy when latency was profiled: {doubt}. Predictions may be far off; measure again when "
            "it is quiet, with `ftp-search profile --remeasure`.",
            highlight=False,
            soft_wrap=True,
        )


def say_elsewhere(profile: LatencyProfile, here: Conditions, view: ProgressView) -> None:
    """Say that a study's predictions come from other hardware or software than this, if they do."""
    differences: tuple[str, ...] = ("measured by an earlier version, which did not keep where",)
    if profile.conditions is not None:
        differences = profile.conditions.differences(here)
    if differences:
        view.console.print(
            "Latency is predicted for where this study began, not for this machine: "
            f"{'; '.join(differences)}. The study keeps its profile, so that its trials compare.",
            highlight=False,
            soft_wrap=True,
        )
