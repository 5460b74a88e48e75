"""Latency profiles of a database: what was measured on such a machine is used again, the rest is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from ftp_core.cost.conditions import Conditions, profile_conditions
from ftp_core.cost.profile import LatencyProfile
from ftp_core.cost.profiling import DEFAULT_SECONDS, profile_latency
from ftp_core.skipping.skipping_model import SkippingModel
from search.errors import SearchError
from search.progress.progress_view import ProgressView, Stage
from studies import StudyStore

Remeasure = Literal["none", "doubtful", "all"]

# Of the progress that is shown, for each shape.
_STEPS = 100


@dataclass(frozen=True)
class Profiled:
    """A latency profile, and the batches and lengths of it that were known already, with when they were measured."""

    profile: LatencyProfile
    known: tuple[tuple[int, int, str], ...] = ()


def profile_of(
    store: StudyStore,
    model: SkippingModel,
    shapes: Sequence[tuple[int, int]],
    view: ProgressView,
    remeasure: Remeasure = "none",
    seconds: float = DEFAULT_SECONDS,
    halves: bool = False,
) -> Profiled:
    """A latency profile of a model on this machine, from the database as far as it is there.

    Args:
        store: Database with profiles, those of other machines among them.
        model: Model, on the device and in the precision that it shall be measured in.
        shapes: Batches and lengths, each a pair.
        view: View that draws progress; it says how far predictions may be off.
        remeasure: Known parts that are measured again: none; those that are not to be relied on, of which the better
            one of before and now is taken; or all, of which the new one is.
        seconds: Most seconds of measuring, for each shape.
        halves: True if blocks whose halves skip apart, or whose skipped tokens keep their keys, are to be predicted:
            known parts without them are measured again.

    Raises:
        DataError: A length is more than the model reads.
    """
    conditions = profile_conditions(model)
    known: dict[tuple[int, int], LatencyProfile] = {}
    for shape in shapes if remeasure != "all" else ():
        found = known_profile(store, conditions, shape)
        if found is None or (halves and model.family.halves is not None and not found.has_halves):
            continue
        if remeasure == "none" or not found.doubts():
            known[shape] = found
    parts, missing = list(known.values()), [shape for shape in shapes if shape not in known]
    if missing:
        title = f"Profiling latency, {seconds:g} s at most"
        with view.stage(title if len(missing) == 1 else f"{title} each", _STEPS * len(missing)) as stage:
            # One by one, so that those that are done are kept whatever becomes of the next.
            for number, shape in enumerate(missing):
                measured = _measured(model, shape, stage, _STEPS * number, seconds)
                say_uncertainty(measured, view)
                parts += keep_profile(store, measured, replace=remeasure == "all")
    profile = LatencyProfile.joined(parts)
    return Profiled(
        profile, tuple((s.batch, s.length, s.measured_at) for s in profile.shapes if (s.batch, s.length) in known)
    )


def known_profile(store: StudyStore, conditions: Conditions, shape: tuple[int, int]) -> LatencyProfile | None:
    """The profile of a batch and length that a database has for some conditions; None if it has none."""
    stored = store.profiles.get(conditions.fingerprint(*shape))
    return None if stored is None else LatencyProfile.from_json(stored)


def _measured(
    model: SkippingModel, shape: tuple[int, int], stage: Stage, before: int, seconds: float
) -> LatencyProfile:
    steps = before

    def on_pass(done: float, note: str) -> None:
        nonlocal steps
        # Whole steps, so that they add up to what there is.
        steps, more = before + round(_STEPS * done), before + round(_STEPS * done) - steps
        stage.advance(more, note)

    try:
        return profile_latency(model, [shape], on_pass, seconds=seconds)
    except torch.OutOfMemoryError as error:
        raise SearchError(
            f"There is not enough memory for {shape[0]} x {shape[1]} tokens: profile smaller batches or lengths."
        ) from error


def keep_profile(store: StudyStore, profile: LatencyProfile, replace: bool) -> list[LatencyProfile]:
    """Keeps a profile that was measured here, each shape by itself, so that each is found again.

    With `replace`, it takes the place of an earlier one that is as good. Returns what is kept: that of before, or of
    another process that was faster, if this one is no better.
    """
    kept = []
    for part in profile.parts():
        earlier = known_profile(store, profile.conditions, (part.batch, part.length))
        if earlier is not None and not replace and not part.is_better_than(earlier):
            kept.append(earlier)
            continue
        fingerprint = profile.conditions.fingerprint(part.batch, part.length)
        facts = {**asdict(profile.conditions), "batch": part.batch, "length": part.length}
        now = store.profiles.keep(fingerprint, facts, part.to_json(), replace or earlier is not None)
        kept.append(LatencyProfile.from_json(now))
    return kept


def say_uncertainty(profile: LatencyProfile, view: ProgressView) -> None:
    """Says how far predictions may be off, a line for each shape."""
    for shape in profile.shapes:
        view.say_once(
            f"Latency of {shape.batch} x {shape.length} tokens is predicted to within {shape.uncertainty:.1%} "
            f"(95 % interval, measured for {shape.seconds:.0f} s)."
        )


def say_doubts(profile: LatencyProfile, view: ProgressView, command: str) -> None:
    """Says in one line why a profile is not to be relied on, if it is not, and the command that measures it again."""
    doubts = profile.doubts()
    if doubts:
        view.say_once(
            f"Predicted latency is not to be relied on: {'; '.join(doubts)}. When the machine is quiet, measure again "
            f"with `{command}`."
        )


def say_elsewhere(profile: LatencyProfile, here: Conditions, view: ProgressView, command: str) -> None:
    """Says that a study's predictions come from other hardware or software, if they do, and the remedy."""
    if differences := profile.conditions.differences(here):
        view.say_once(
            "Latency is predicted for where this study began, not for this machine: "
            f"{'; '.join(differences)}. The study keeps its profile, so that its trials compare; `{command}` measures "
            "one here, and predicts them all anew."
        )
