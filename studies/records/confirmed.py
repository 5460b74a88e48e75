"""KL of trials as fresh items confirm it: items of the calibration set that the search did not see."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from studies.records.trial import Trial

# Metrics of trials that were confirmed.
FRESH_KL = "fresh_kl"  # KL on fresh items: as many as the trial saw that led in the end, by estimate where it saw fewer
FRESH_ITEMS = "fresh_items"  # fresh items that it was evaluated on
# KL to choose by: the mean over the items of the search set, whose KL is raised by what is optimistic about it, and
# fresh ones.
CONFIRMED_KL = "confirmed_kl"


def as_confirmed(trials: Sequence[Trial]) -> list[Trial]:
    """Trials with the KL to choose by in place of that of the search set; without a confirmed one, as they are.

    KL on the search set is too low for those that it chose. So that trials which nobody confirmed are not the better
    for it, their KL is raised by as much as that of the confirmed ones of their search, or of all searches.
    """
    known: defaultdict[int | None, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for trial in trials:
        if CONFIRMED_KL in trial.metrics and trial.values is not None:
            for key in (trial.round, None):
                known[key][0] += trial.metrics[CONFIRMED_KL]
                known[key][1] += trial.values[0]
    if not known:
        return list(trials)
    raised = {key: confirmed / searched if searched > 0 else 1.0 for key, (confirmed, searched) in known.items()}
    found = []
    for trial in trials:
        if trial.values is not None:
            own = trial.values[0] * raised.get(trial.round, raised[None])
            kl = trial.metrics.get(CONFIRMED_KL, own)
            trial = replace(trial, values=(kl, *trial.values[1:]))
        found.append(trial)
    return found
