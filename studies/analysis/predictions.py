"""Reliability of predicted latencies: doubts about the profile, and predictions beside measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from studies.records.measurement import Measurement
from studies.records.records import RouterRun, StudyRecord
from studies.records.trial import Trial

# Shares beyond which a prediction is off by more than machines vary from hour to hour.
MOST_OFF = 0.25


@dataclass(frozen=True)
class Prediction:
    """A latency that was predicted, and measured later."""

    what: str  # "dense", or "selected"
    predicted_ms: float  # by the study's profile
    measured_ms: float  # on the clock
    uncertainty: float | None = None  # half a 95 % interval around the prediction, as a share of it; None if unknown
    as_dynamic: bool = False  # its router reads hidden states, but was predicted as the dynamic one

    @property
    def ratio(self) -> float:
        """Predicted by measured latency."""
        return self.predicted_ms / self.measured_ms

    @property
    def is_off(self) -> bool:
        """True if one of them is more than a quarter above the other."""
        return not 1 / (1 + MOST_OFF) <= self.ratio <= 1 + MOST_OFF

    def __str__(self) -> str:
        """Both, and how they compare."""
        spread = "" if self.uncertainty is None else f" ± {self.uncertainty * self.predicted_ms:.1f}"
        how = " (its router reads hidden states, and counts as the dynamic one)" if self.as_dynamic else ""
        return (
            f"{self.what} {self.predicted_ms:.1f}{spread} predicted{how}, {self.measured_ms:.1f} ms measured "
            f"({self.ratio:.2f}x)"
        )


@dataclass(frozen=True)
class LatencyPredictions:
    """Reliability of the latencies that a study predicts."""

    doubts: tuple[str, ...] = ()  # reasons not to rely on its profile, one phrase each; empty if there are none
    compared: tuple[Prediction, ...] = ()  # predictions that were measured later

    @property
    def is_doubtful(self) -> bool:
        """True if the profile or the clock contradicts the predictions."""
        return bool(self.doubts) or any(one.is_off for one in self.compared)

    def sentence(self, name: str) -> str:
        """Explains why predicted latency is not to be relied on, and what to do; empty where it is.

        Args:
            name: Name of the study.
        """
        if not self.is_doubtful:
            return ""
        compared = "; ".join(map(str, self.compared))
        if self.doubts:
            why = "; ".join([*self.doubts, *([compared] if compared else [])])
            said = f"Predicted latency, by which schedules were chosen, is not to be relied on: {why}."
        else:
            said = (
                f"Predicted and measured latency disagree: {compared}. The machine did not run at one pace when it was "
                "profiled and when schedules were measured."
            )
        return (
            f"{said} When it is quiet, `ftp-search resume {name} --remeasure` measures the profile again, predicts all "
            "trials anew and selects again."
        )


def latency_predictions(
    study: StudyRecord,
    trials: Sequence[Trial],
    measurements: Sequence[Measurement],
    routers: Sequence[RouterRun] = (),
) -> LatencyPredictions:
    """Compares the predictions of a study with measurements; a study that predicts nothing has neither.

    Args:
        study: The study.
        trials: Its trials, the selected one among them.
        measurements: Its measurements; those on test items count before those on validation items.
        routers: Its routers.
    """
    if not predicts_latency(study):
        return LatencyPredictions()
    profile, selection = study.facts.latency_profile, study.facts.selection
    uncertainty = None if profile is None else profile.uncertainty
    measured = sorted(measurements, key=lambda m: m.split != "test")
    compared = []
    dense = next((m for m in measured if m.variant == "dense"), None)
    dense_ms = (profile and profile.dense_ms) or _of_dense(study, trials)
    if dense is not None and dense_ms is not None:
        compared.append(Prediction("dense", dense_ms, dense.latency_ms, uncertainty))
    if selection is not None:
        wanted = (selection.trial, selection.router)
        own = next((m for m in measured if m.trial is not None and (m.trial, m.router) == wanted), None)
        trial = next((trial for trial in trials if trial.number == wanted[0]), None)
        selected_ms = None if trial is None else _predicted_ms(study, trial)
        if own is not None and selected_ms is not None:
            # Only the dynamic router is profiled, whose decisions stand for those of others that are trained.
            hidden = {run.number for run in routers if run.config.get("kind") == "hidden"}
            as_dynamic = trial is not None and trial.router in hidden
            compared.append(Prediction("selected", selected_ms, own.latency_ms, uncertainty, as_dynamic))
    return LatencyPredictions(() if profile is None else profile.doubts, tuple(compared))


def _of_dense(study: StudyRecord, trials: Sequence[Trial]) -> float | None:
    """Predicted latency of the dense model, if it was a trial."""
    dense = (trial for trial in trials if not any(trial.schedule) and trial.values is not None)
    return next((ms for trial in dense if (ms := _predicted_ms(study, trial)) is not None), None)


def _predicted_ms(study: StudyRecord, trial: Trial) -> float | None:
    """Predicted latency of a trial, a metric or an objective."""
    known = trial.metrics.get("latency_ms")
    if known is None and "latency_ms" in study.objectives and trial.values is not None:
        known = trial.values[study.objectives.index("latency_ms")]
    return known


def predicts_latency(study: StudyRecord) -> bool:
    """Tells if a study searches by predicted latency, as its cost or under a limit."""
    limits = (study.config.get(name) for name in ("max_latency_ms", "target_speedup"))
    return "latency_ms" in study.objectives or any(limit is not None for limit in limits)
