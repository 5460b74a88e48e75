"""KL of single items that a search did not see: the calibration items behind the search set, in batches."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from ftp_core.schedule import SparsitySchedule
from ftp_core.text.encoding import EncodedExample, encoded_fingerprint
from search.config.run_config import RunConfig
from search.engine.trial_runner import MAX_ATTEMPTS
from search.evaluators import Evaluator, ItemKl, Task
from search.inputs.data import Workload
from search.problem.objectives import evaluation_context
from search.stages.open_study import OpenStudy
from studies import Trial
from studies.records.halves import stored

_log = logging.getLogger(__name__)
# As many as an evaluator has in a batch.
_BATCH = 16
# How long it is deaf to a request to stop.
_POLL_S = 0.25


def in_batches(items: Sequence[EncodedExample]) -> list[Sequence[EncodedExample]]:
    """Items in batches as evaluators have them."""
    return [items[start : start + _BATCH] for start in range(0, len(items), _BATCH)]


def fresh_batches(config: RunConfig, workload: Workload) -> list[Sequence[EncodedExample]]:
    """The calibration items behind the search set, in batches; none where nothing is to be confirmed."""
    return in_batches(workload.splits["calibration"][config.search_items :]) if config.confirm else []


class ItemResults:
    """KL of each item of some batches under trials, kept in the database, whichever run or study evaluated them.

    Args:
        study: The study.
        batches: Batches of items; an evaluator has them as the parts behind those of the search set.
    """

    def __init__(self, study: OpenStudy, batches: Sequence[Sequence[EncodedExample]]) -> None:
        self._study = study
        self._fingerprints = [encoded_fingerprint(batch) for batch in batches]
        self._model = study.workload.model.skipping_fingerprint()

    def known(self, batch: int, trials: Sequence[Trial]) -> dict[int, list[ItemKl]]:
        """Items of a batch by number of the trial, as far as they are known; all trials have one router."""
        context = self._context(batch, trials[0].router)
        found = self._study.store.evaluations.find(context, [stored(trial.schedule) for trial in trials])
        return {
            trial.number: [ItemKl(*item) for item in found[trial.schedule]["items"]]
            for trial in trials
            if trial.schedule in found
        }

    def all_known(self, trial: Trial) -> list[ItemKl]:
        """Items of a trial, batch after batch, up to the first that it was not evaluated on."""
        items: list[ItemKl] = []
        for batch in range(len(self._fingerprints)):
            known = self.known(batch, [trial])
            if not known:
                break
            items += known[trial.number]
        return items

    def of(
        self, batch: int, trials: Sequence[Trial], evaluator: Evaluator, is_asked_to_stop: Callable[[], bool]
    ) -> dict[int, list[ItemKl]] | None:
        """Items of a batch by number of the trial, evaluated where they are not known.

        Those of trials whose evaluation fails, however often it is tried, are missing. None if asked to stop.
        """
        self._study.lease.check()
        found = self.known(batch, trials)
        context, n_blocks = self._context(batch, trials[0].router), self._study.workload.model.skipping.n_blocks
        part = len(self._study.config.fidelities) + batch
        by_schedule = {SparsitySchedule.of(trial.schedule, n_blocks): trial for trial in trials}
        waiting = [Task(one, part) for one, trial in by_schedule.items() if trial.number not in found]
        failures, n_running = Counter[Task](), 0
        while waiting or n_running:
            while waiting and n_running < evaluator.capacity and not is_asked_to_stop():
                evaluator.submit(waiting.pop(0))
                n_running += 1
            if not n_running:
                break
            for done in evaluator.next_results(_POLL_S):
                n_running -= 1
                trial = by_schedule[done.schedule]
                if done.error is None:
                    items = [(item.kl, item.n_tokens) for item in done.items]
                    self._study.store.evaluations.keep(context, stored(trial.schedule), {"items": items})
                    found[trial.number] = list(done.items)
                    continue
                failures[done.task] += 1
                if failures[done.task] < MAX_ATTEMPTS:
                    waiting.append(done.task)
                else:
                    _log.warning("Trial %d is not evaluated on fresh items: %s", trial.number, done.error)
        return None if is_asked_to_stop() else found

    def _context(self, batch: int, router: int | None) -> str:
        return evaluation_context(
            self._model,
            f"each item of {self._fingerprints[batch]}",
            str(self._study.router(router)),
            False,
            self._study.workload.model.skipping.keep_first,
        )
