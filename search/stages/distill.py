"""The distillation stage: trains a router on schedules of the front, from where an earlier run of the stage stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from ftp_core.loading.allocator import return_freed_memory
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import DynamicRouter, HiddenRouter, OnePassRouter, ScoringRouter, StaticRouter, router_to_bytes
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.prefixes import PrefixStore
from ftp_core.training.distillation import distill
from ftp_core.training.distillation_config import DistillationConfig
from search.stages.measure import quality_set
from search.stages.open_study import OpenStudy
from search.tuning.tuning_state import RouterTuning
from studies import RouterRun, Trial
from studies.records.halves import stored
from studies.records.study_facts import StudyFacts, Tuning

_log = logging.getLogger(__name__)

_HIDDEN_GUIDE = 0.3
# Held-out KL by half of a training, as a multiple of another router's and beyond it, that is not made up for any more.
_HOPELESS, _HOPELESS_KL = 4.0, 0.05


def distillation_config(study: OpenStudy) -> DistillationConfig:
    """Hyperparameters of router training: the defaults, or what tuning found to be better."""
    tuning = study.facts.tuning
    base = DistillationConfig(steps=study.config.router_steps, seed=study.config.seed)
    return base if tuning is None else replace(base, **tuning.best)


def schedules_to_distil(points: Sequence[Trial], chosen: Trial, most: int) -> list[SparsitySchedule]:
    """The schedules that one router learns to serve, `most` of them: the chosen one, and its neighbours on the front.

    A router sees each block's sparsity, so that one can serve many schedules; those near the chosen one are what the
    refinement will try.
    """
    nearest = sorted(points, key=lambda point: (abs(point.overall_sparsity - chosen.overall_sparsity), point.number))
    found = dict.fromkeys(point.schedule for point in (chosen, *nearest) if any(point.schedule))
    return [SparsitySchedule.of(schedule) for schedule in found][:most]


def train_router(
    study: OpenStudy, stage: str, chosen: Trial, schedules: Sequence[SparsitySchedule], config: DistillationConfig
) -> RouterRun:
    """Trains a router of each kind that is wanted, from where an earlier training of the stage stopped.

    Returns the one with the lowest held-out KL. It is for the chosen trial's schedule in the first place.
    """
    held_out, prefixes = quality_set(study, "validation"), PrefixStore(study.config.held_out_prefix_bytes)
    static = StaticRouter()
    with study.view.stage("The static router, validation", len(schedules) * held_out.n_batches) as progress:
        static_kl = fmean(
            held_out.evaluate(schedule, static, prefixes=prefixes, on_batch=progress.advance).kl
            for schedule in schedules
        )
    prefixes.forget(static)
    task = _task(study, schedules, config)
    facts = {"stage": stage, "task": task, "schedules": len(schedules), "static_kl": static_kl}
    kinds = ("dynamic", "hidden") if study.config.router == "best" else (study.config.router,)

    def trained() -> list[RouterRun]:
        # An earlier run of the stage that was stopped may have been about other schedules.
        runs = study.store.routers.of(study.name)
        return [run for run in runs if (run.config.get("stage"), run.config.get("task")) == (stage, task)]

    for kind in kinds:
        if not any(run.config.get("kind") == kind for run in trained()):
            best = min((run.held_out_kl for run in trained()), default=math.inf)
            _train(study, stage, chosen, schedules, config, kind, held_out, facts, prefixes, best)
    return min(trained(), key=lambda run: (run.held_out_kl, run.number))


def _task(study: OpenStudy, schedules: Sequence[SparsitySchedule], config: DistillationConfig) -> str:
    """Hash of what is trained, which tells it apart from anything else that a stage of this name left unfinished."""
    workload = study.workload
    identity = workload.model.skipping_fingerprint(), workload.data_fingerprint, workload.model.skipping.keep_first
    about = [[list(one) for one in schedules], config.to_json(), *identity]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def _unfinished(study: OpenStudy, stage: str, task: str, ending: str = "") -> Path | None:
    """Path where a training or a tuning keeps its state; those that others of its stage left behind are removed."""
    place = study.store.runs.unfinished_work(study.name, f"{stage}-{task}{ending}")
    if place is not None and place.parent.is_dir():
        prefix = place.name.removesuffix(f"{task}{ending}")
        for left in place.parent.glob(f"{prefix}*"):
            if left != place and left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            elif left != place:
                left.unlink(missing_ok=True)
    return place


def _train(
    study: OpenStudy,
    stage: str,
    chosen: Trial,
    schedules: Sequence[SparsitySchedule],
    config: DistillationConfig,
    kind: str,
    held_out: QualitySet,
    facts: Mapping[str, Any],
    prefixes: PrefixStore,
    best_kl: float,
) -> None:
    """Trains one router and keeps it, from where an earlier run of the stage stopped.

    One that is far behind another router of the stage, which has a held-out KL of `best_kl`, is trained half.
    """
    router = _fresh(study, kind, schedules, config)
    if kind == HiddenRouter.kind:
        # It cannot start as the static router, so it needs the paper's guide to it.
        config = replace(config, w_guide=config.w_guide or _HIDDEN_GUIDE)
    examples = study.workload.splits["calibration"]
    checkpoint = _unfinished(study, f"{stage}-{kind}", facts["task"], ".safetensors")
    with study.view.stage(f"Distilling the {kind} router, steps", config.steps) as progress:
        done, n_steps = 0.0, 0

        def on_step(step: int, kl: float) -> None:
            nonlocal n_steps
            n_steps += 1
            study.lease.check()
            progress.advance(0, note=f"held-out KL {kl:.3g}, static {facts['static_kl']:.3g}")
            study.view.figures(stage, step, {"held_out_kl": kl})

        def on_progress(share: float) -> None:
            nonlocal done
            # Of what a step takes, some is spent before the first one and on evaluations.
            done, more = share * config.steps, share * config.steps - done
            progress.advance(more)

        result = distill(
            study.workload.model.skipping,
            examples,
            schedules,
            config,
            held_out=held_out,
            router=router,
            checkpoint=checkpoint,
            static_kl=facts["static_kl"],
            prefixes=prefixes,
            on_step=on_step,
            on_progress=on_progress,
            give_up_above=_HOPELESS * best_kl + _HOPELESS_KL,
        )
    weights = router_to_bytes(result.router)
    first = dict(zip(result.curves["held_out_step"], result.curves["held_out_kl"], strict=True)).get(0)
    if kind == DynamicRouter.kind and config.consider_static and first is not None:
        # A training that began elsewhere compares with the static router as it was evaluated there, to the last bit.
        facts = {**facts, "static_kl": first}
    run = RouterRun(
        trial=chosen.number,
        schedule=stored(chosen.schedule),
        config={**config.to_json(), **facts, "kind": kind, "tuned": not n_steps},
        curves=result.curves,
        sha256=hashlib.sha256(weights).hexdigest(),
        seconds=result.seconds,
        created_at=datetime.now(UTC),
    )
    study.store.routers.add(study.name, run, weights)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)


def _fresh(
    study: OpenStudy, kind: str, schedules: Sequence[SparsitySchedule], config: DistillationConfig
) -> ScoringRouter | None:
    """A router of a kind before it learns; None for the dynamic one, which `distill` makes."""
    model, has_halves = study.workload.model.skipping, not all(schedule.is_plain for schedule in schedules)
    width = model.model.config.hidden_size
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)
        if kind == HiddenRouter.kind:
            return HiddenRouter(width, has_halves)
        if kind == OnePassRouter.kind:
            router = OnePassRouter(width, model.n_blocks, has_halves)
            if config.start == "static":
                router.start_as_static()
            return router
    return None


def _hand_over(study: OpenStudy, schedules: Sequence[SparsitySchedule], number: int, tuning: RouterTuning) -> None:
    """Lets a round find its dynamic router trained: the training of the best trial is the one that it asks for."""
    stage = f"distill-{number}-{DynamicRouter.kind}"
    place = _unfinished(study, stage, _task(study, schedules, tuning.best), ".safetensors")
    if tuning.training is None or place is None or study.config.router not in ("best", DynamicRouter.kind):
        return
    partial = place.with_name(f".{place.name}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tuning.training, partial)
        os.replace(partial, place)
    except OSError as error:
        _log.warning("The tuned router is trained once more: its training could not be kept. %s", error)


def tune(study: OpenStudy, schedules: Sequence[SparsitySchedule], number: int) -> None:
    """Searches better hyperparameters of the training in a round, and of later ones, with Ray Tune (`tune_router`).

    They are noted, and the round finds the best training ended.
    """
    config, splits = study.config, study.workload.splits
    # What stages before have left in the allocator, workers may need.
    return_freed_memory()
    base = DistillationConfig(steps=config.router_steps, seed=config.seed)
    folder = _unfinished(study, "tune", _task(study, schedules, base))
    n_steps = config.router_trials * base.steps
    with tempfile.TemporaryDirectory() as passing, study.view.stage("Tuning the router, steps", n_steps) as stage:
        # Ray takes seconds to import.
        from search.tuning.router_tuning import tune_router

        steps = 0.0

        def on_result(number: int, kl: float) -> None:
            study.lease.check()
            stage.advance(0, note=f"{number} of {config.router_trials} trials ended, best held-out KL {kl:.3g}")
            study.view.figures("tune", number, {"held_out_kl": kl})

        def on_progress(done: float) -> None:
            nonlocal steps
            study.lease.check()
            # Trials have other numbers of steps, and some are stopped early: each counts as one of the usual length.
            steps, more = done * base.steps, done * base.steps - steps
            stage.advance(more)

        tuning = tune_router(
            study.workload.model.skipping,
            splits["calibration"],
            splits["validation"],
            schedules,
            base,
            trials=config.router_trials,
            seed=config.seed,
            workers=max(1, config.workers),
            address=config.ray_address,
            deterministic=config.deterministic,
            prefix_bytes=config.held_out_prefix_bytes,
            folder=folder or Path(passing),
            on_result=on_result,
            on_progress=on_progress,
        )
        _hand_over(study, schedules, number, tuning)
    own = base.to_json()
    best = {name: value for name, value in tuning.best.to_json().items() if value != own[name]}
    study.note(StudyFacts(tuning=Tuning(tuning.trials, best, tuning.seconds)))
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
