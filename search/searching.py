"""The search stage: builds space, proposers, workers and engine from a study's configuration, and runs them."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING

from ftp_core.cost import LatencyProfile
from ftp_core.cost.conditions import profile_conditions
from ftp_core.encoding import encoded_fingerprint
from ftp_core.routers import StaticRouter
from search.config import RunConfig
from search.cost_ledger import CostLedger
from search.costs import Costs
from search.engine import SearchEngine
from search.halving import OptunaPruning, Pruner
from search.interruption import gentle_interruption
from search.measuring import latency_profile, timed_prompts
from search.objectives import Objectives, evaluation_context
from search.open_study import OpenStudy
from search.portfolio import Portfolio
from search.profiles import say_doubts
from search.progress import Stage
from search.proposers.catalogue import make_proposers
from search.space import LatencyLimit, ScheduleSpace
from search.stopping import Stopping
from search.study_ledger import StudyLedger
from search.warm_start import warm_outcomes
from search.workload import search_set
from studies import TrialRecord, knee
from studies.objectives import DEFAULT_COST, CostName, objective

if TYPE_CHECKING:
    from search.evaluators.ray_pool import RayPool

_SECONDS_BETWEEN_RESIZES = 2.0
_SECONDS_BETWEEN_NOTES = 0.5


def study_costs(study: OpenStudy) -> Costs:
    """What a study's schedules cost at its timed input; latency is profiled first if the search needs it.

    A search that trades KL against something else takes a profile that is there already, and does without otherwise.
    """
    model = study.workload.model.skipping
    batch, length = timed_prompts(study).ids.shape
    study.store.set_facts(study.name, {"timed_input": {"batch": batch, "length": length}})
    needs = study.config.predicts_latency
    return Costs(model, batch, length, latency_profile(study) if needs else _known_profile(study, batch, length))


def search_schedules(study: OpenStudy, costs: Costs) -> None:
    """Evaluate schedules until a condition ends it.

    Args:
        study: What to search for.
        costs: What schedules cost there.

    Raises:
        ConfigError: No schedule keeps the latency; what can be known without them, `check_search` has checked.
        EvaluationError: No worker could start.
        KeyboardInterrupt: Ctrl-C was pressed, and what was in flight has ended.
    """
    config = study.config
    space = schedule_space(config, study.workload.model.skipping.n_blocks, costs)
    objectives = Objectives(costs.function(config.cost), config.min_accuracy)
    warm = []
    if config.warm_start is not None:
        warm = warm_outcomes(study.store.each_trial(config.warm_start), space, objectives)
    ledger = StudyLedger(study.store, study.name, study.lease, _context(study))
    portfolio = Portfolio(
        make_proposers(config.sampler, space, config.seed), config.seed, ledger.tallies(), config.deterministic
    )
    with (
        closing(_start_workers(study)) as pool,
        study.view.stage("Searching schedules", config.trials, ledger.n_trials) as stage,
    ):
        engine = SearchEngine(
            space,
            portfolio,
            pool,
            objectives,
            CostLedger(ledger, costs.of),
            seed=config.seed,
            deterministic=config.deterministic,
            fidelities=config.fidelities,
            pruner=_pruner(config),
            warm=warm,
        )
        watch = _Watch(study, stage, ledger, pool)
        ledger.on_kept = watch.on_kept
        stopping = Stopping(config.trials - ledger.n_trials, config.seconds, config.plateau)

        def on_first() -> None:
            stage.advance(0, "finishing what is in flight; Ctrl-C again leaves at once")

        try:
            with gentle_interruption(on_first) as interruption:
                engine.run(stopping, lambda: interruption.requested)
            if interruption.requested:
                raise KeyboardInterrupt
        finally:
            with study.store.hurried():
                ledger.keep_tallies()
                _keep_reuse(study, ledger)
        if stopping.reason is not None and ledger.n_trials < config.trials:
            stage.advance(0, f"stopped, since {stopping.reason}")


def schedule_space(config: RunConfig, n_blocks: int, costs: Costs) -> ScheduleSpace:
    """The schedules that a configuration allows.

    Raises:
        ConfigError: There is none.
    """
    limit = None
    if config.max_latency_ms is not None:
        limit = LatencyLimit(costs.function("latency_ms"), config.max_latency_ms)
    return ScheduleSpace(n_blocks, config.target_sparsity, dense_blocks=config.dense_blocks, latency_limit=limit)


def best_note(points: list[TrialRecord], cost: CostName = DEFAULT_COST) -> str:
    """A word on a front of KL against a cost."""
    if not points:
        return "no trial finished"
    best = knee(points)
    assert best.values is not None
    return f"front {len(points)}, knee: KL {best.values[0]:.3g} at {objective(cost).text(best.values[1])}"


class _Watch:
    """Draws progress, and lets the number of workers follow what the study says."""

    def __init__(self, study: OpenStudy, stage: Stage, ledger: StudyLedger, pool: RayPool) -> None:
        self._study = study
        self._stage = stage
        self._ledger = ledger
        self._pool = pool
        self._n_workers = study.config.workers
        self._resized = self._noted = time.monotonic()

    def on_kept(self, n: int) -> None:
        now, note = time.monotonic(), ""
        if now - self._noted > _SECONDS_BETWEEN_NOTES:
            self._noted, note = now, best_note(self._ledger.front, self._study.config.cost)
        self._stage.advance(n, note)
        if now - self._resized > _SECONDS_BETWEEN_RESIZES:
            self._resized = now
            self._follow()

    def _follow(self) -> None:
        wanted = self._study.store.study(self._study.name).config.get("workers", self._n_workers)
        if wanted != self._n_workers:
            self._n_workers = wanted
            self._pool.resize(wanted)


def _known_profile(study: OpenStudy, batch: int, length: int) -> LatencyProfile | None:
    """The study's latency profile, or else this machine's if no trial was made without: its trials shall compare."""
    stored = study.store.study(study.name).facts.get("latency_profile")
    if stored is not None:
        return latency_profile(study)
    if study.store.n_trials(study.name) == 0:
        here = profile_conditions(study.workload.model.skipping)
        stored = study.store.latency_profile(here.fingerprint(batch, length))
        if stored is not None:
            study.store.set_facts(study.name, {"latency_profile": dict(stored)})
    if stored is None:
        return None
    profile = LatencyProfile.from_json(stored)
    say_doubts(profile, study.view)
    return profile


def _start_workers(study: OpenStudy) -> RayPool:
    # Ray takes a second to import: commands that only read a study shall not wait for it.
    from search.evaluators.ray_pool import RayPool
    from search.evaluators.worker_setup import ModelSetup

    config = study.config
    setup = ModelSetup(
        study.workload.model.skipping,
        search_set(study.config, study.workload),
        fidelities=config.fidelities,
        router=StaticRouter(),
        choices=config.min_accuracy is not None,
        prefix_bytes=config.prefix_bytes,
    )
    with study.view.stage("Starting workers", config.workers + config.gpu_workers) as stage:
        return RayPool(
            setup,
            config.workers,
            address=config.ray_address,
            n_gpu_workers=config.gpu_workers,
            gpu_share=config.gpu_share,
            trial_timeout_s=config.trial_timeout,
            on_ready=stage.advance,
        )


def _pruner(config: RunConfig) -> Pruner | None:
    if config.pruner == "halving":
        return None
    from optuna import pruners

    made: dict[str, pruners.BasePruner] = {
        "asha": pruners.SuccessiveHalvingPruner(),
        "hyperband": pruners.HyperbandPruner(),
        "median": pruners.MedianPruner(),
        "percentile": pruners.PercentilePruner(50.0),
    }
    return OptunaPruning(made[config.pruner], len(config.fidelities) - 1)


def _context(study: OpenStudy) -> str:
    config = study.config
    return evaluation_context(
        study.workload.model.fingerprint(),
        encoded_fingerprint(search_set(study.config, study.workload)),
        StaticRouter.kind,
        config.min_accuracy is not None,
    )


def _keep_reuse(study: OpenStudy, ledger: StudyLedger) -> None:
    """Add to what the study knows of block computations that were made and spared."""
    facts = study.store.study(study.name).facts
    study.store.set_facts(
        study.name,
        {
            "blocks_run": facts.get("blocks_run", 0) + ledger.blocks_run,
            "blocks_reused": facts.get("blocks_reused", 0) + ledger.blocks_reused,
        },
    )
