"""A study as people analyse it: tables, the front, the best schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from studies.pareto import best_point, front, hypervolume, study_volume
from studies.records.confirmed import as_confirmed
from studies.records.halves import n_blocks, named
from studies.records.records import RouterRun, StudyRecord
from studies.records.target import Target
from studies.records.trial import Trial
from studies.store.store import StudyStore

if TYPE_CHECKING:
    import pandas as pd


class LoadedStudy:
    """A study, read anew with every call, so that a running search can be watched.

    Args:
        store: Store of the study.
        name: Its name.

    Raises:
        StudyNotFoundError: There is no such study.
    """

    def __init__(self, store: StudyStore, name: str) -> None:
        self._store = store
        self.name = name
        self._objectives = store.studies.get(name).objectives

    def __repr__(self) -> str:
        return f"LoadedStudy({self.name!r}, {str(self._store)!r})"

    @property
    def record(self) -> StudyRecord:
        """Its configuration, state and facts."""
        return self._store.studies.get(self.name)

    def trials(self) -> pd.DataFrame:
        """Every trial that has ended: one row each, indexed by number.

        Columns: state, proposer, parents, worker, fidelity, seconds, finished_at, constraint_violation,
        overall_sparsity, the objectives by name, `block_i` for each block (`attention_i`, `mlp_i`, `kv_i` where halves
        skip apart), each metric by name, error.
        """
        return self._frame(self._store.trials.of(self.name))

    def front(self) -> pd.DataFrame:
        """The non-dominated trials, in the columns of `trials`, best first objective first."""
        return self._frame(front(self._store.trials.of(self.name)))

    def best(self, target_sparsity: float | None = None) -> Trial:
        """The trial that `ftp-search show` marks and `ftp-search export` writes, or the front's best at another target.

        That is the selected point once the study has measured, and before that the one chosen from the front: at the
        study's own target, or else its knee.

        Args:
            target_sparsity: Overall sparsity to have; None for the study's own target.

        Raises:
            ValueError: No trial has finished.
        """
        record = self.record
        own = Target.of(record.config)
        if target_sparsity is None or (own is not None and target_sparsity == own.sparsity):
            if record.chosen_trial is not None:
                return self._store.trials.get(self.name, record.chosen_trial)
            target = own
        else:
            target = Target("target_sparsity", target_sparsity)
        trials = self._store.trials.of(self.name)
        best = best_point(front(as_confirmed(trials)), target)
        return next(trial for trial in trials if trial.number == best.number)

    def hypervolume(self, reference: Sequence[float] | None = None) -> float:
        """Hypervolume of the front, up to `reference` on the scales of the objectives, or as reports measure it.

        Args:
            reference: A corner; None for that of `front_volume`, with KL counted as its logarithm.
        """
        trials = self._store.trials.of(self.name)
        if reference is not None:
            return hypervolume(trials, reference)
        measured = study_volume(self.record, trials)
        return 0.0 if measured is None else measured.of(trials)

    def router(self) -> RouterRun | None:
        """The router that was distilled last; None before that."""
        runs = self._store.routers.of(self.name)
        return runs[-1] if runs else None

    def router_weights(self, number: int) -> bytes:
        """Weights of a router by its number; `ftp_core.router_from_bytes` makes a router of them.

        Raises:
            StorageError: They are not those that were stored, or there is no router of this number.
        """
        return self._store.routers.weights(self.name, number)

    def _frame(self, trials: Sequence[Trial]) -> pd.DataFrame:
        # Commands that draw no table shall not wait for its library.
        import pandas as pd

        rows, has_halves = [], any(n_blocks(trial.schedule) < len(trial.schedule) for trial in trials)
        for trial in trials:
            values = trial.values or (float("nan"),) * len(self._objectives)
            rows.append(
                {
                    "number": trial.number,
                    "state": trial.state.value,
                    "proposer": trial.proposer,
                    "parents": trial.parents,
                    "worker": trial.worker,
                    "fidelity": trial.fidelity,
                    "seconds": trial.seconds,
                    "finished_at": trial.finished_at,
                    "constraint_violation": trial.constraint_violation,
                    "overall_sparsity": trial.overall_sparsity,
                    **dict(zip(self._objectives, values, strict=True)),
                    **named(trial.schedule, has_halves),
                    # A metric may be an objective too.
                    **{name: value for name, value in trial.metrics.items() if name not in self._objectives},
                    "error": trial.error,
                }
            )
        return pd.DataFrame(rows, columns=None if rows else ["number"]).set_index("number")


def load(name: str, storage: str | StudyStore = "sqlite:///ftp-studies.db") -> LoadedStudy:
    """Open a study to look at it.

    Args:
        name: Its name.
        storage: URL of its database, or a store that is open already.

    Raises:
        StorageError: The database cannot be opened.
        StudyNotFoundError: There is no such study.
    """
    return LoadedStudy(storage if isinstance(storage, StudyStore) else StudyStore(storage, create=False), name)
