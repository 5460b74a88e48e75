"""Tunes the hyperparameters of a router's training with Ray Tune."""

from __future__ import annotations

import itertools
import logging
import math
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

# Before Ray is imported: see `search.evaluators.ray_pool`. Tune shall neither write tables nor take Ctrl-C.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
# Else it prints what it is about to do, even when told to be silent.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import optuna
import ray
import torch
from optuna.distributions import BaseDistribution
from ray import tune
from ray.exceptions import RayError
from ray.tune.error import TuneError
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from ftp_core.errors import CoreError
from ftp_core.loading.allocator import keep_freed_memory
from ftp_core.loading.compiled_kernels import keep_few_kernels
from ftp_core.loading.identity import model_identity
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.prefixes import PrefixStore
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample, encoded_fingerprint
from ftp_core.training.distillation import distill
from ftp_core.training.distillation_config import DistillationConfig
from search.errors import ConfigError, EvaluationError
from search.evaluators.ray_cluster import cause_of, cluster, cluster_address
from search.evaluators.shared_model import SharedModel
from search.tuning.router_hyperparameters import TUNED, drawn_configs, search_space
from search.tuning.tuning_state import TRAINING_FILE, RouterTuning, TrialShares, TuningEntry, TuningState

_log = logging.getLogger(__name__)

_KL, _STEP, _SECONDS, _IS_TRAINED, _ERROR = "held_out_kl", "step", "seconds", "is_trained", "error"
# What a checkpoint holds beside the training's own file: how long it took so far.
_SECONDS_FILE = "seconds"
# Of a trial whose worker dies.
_MAX_FAILURES = 2
# Trials before TPE believes what it has seen.
_RANDOM_TRIALS = 6
# Of buffers that a worker's allocator keeps: workers train side by side, and share what memory there is.
_LARGEST_KEPT_BYTES = 4 * 2**20
# Ray counts resources in ten-thousandths.
_SHARES = 10_000


def tune_router(
    model: SkippingModel,
    examples: Sequence[EncodedExample],
    held_out: Sequence[EncodedExample],
    schedules: Sequence[Sequence[float]],
    base: DistillationConfig,
    *,
    trials: int,
    seed: int,
    workers: int,
    address: str | None,
    deterministic: bool,
    folder: str | os.PathLike[str],
    prefix_bytes: int = 0,
    on_result: Callable[[int, float], None] = lambda ended, best_kl: None,
    on_progress: Callable[[float], None] = lambda done: None,
) -> RouterTuning:
    """Train routers with different hyperparameters, and find those with the lowest held-out KL.

    The base configuration is the first trial and always trained to its end, so that the outcome is never worse.
    TPE proposes the others, and ASHA stops those that lag behind. A tuning that ended in the middle, however it did,
    goes on with what is in its folder: trials that ended are not trained again, others from their last checkpoint.

    Args:
        model: The model; on a GPU, trials share the GPUs.
        examples: Training examples.
        held_out: Examples that trials are compared on.
        schedules: Schedules that the router serves.
        base: Configuration whose other hyperparameters all trials have.
        trials: Number of trials, the base configuration included.
        seed: Seed of the proposals.
        workers: Number of trials that train at once, each on one thread.
        address: Address of a Ray cluster to join, all of whose nodes must see the folder; None for this machine.
        deterministic: True for an outcome independent of timing and interruptions: configurations are drawn before any
            is trained, and each is trained to its end.
        folder: Folder of trials and checkpoints, for this tuning alone.
        prefix_bytes: Most memory of each CPU worker for hidden states that evaluations share.
        on_result: Called with the number of trials that have ended, and their lowest held-out KL, whenever one does;
            when a tuning goes on, also before it does.
        on_progress: Called with the number of trials that are done, the parts of those that train included, whenever
            it has grown, looked at once a second; when a tuning goes on, also before it does.

    Raises:
        ConfigError: There is no trial or no worker.
        SearchError: The folder cannot be written to, or holds another tuning.
        EvaluationError: Ray could not start, no trial could be trained, or, with `deterministic`, the workers of one
            died again and again.
        CoreError: The model cannot be identified, or the examples not read.
    """
    if trials < 1 or workers < 1:
        raise ConfigError(f"{trials} trials on {workers} workers tune nothing: give at least one of each.")
    served = [model.checked(schedule) for schedule in schedules]
    subject = {
        "model": model_identity(model.model),
        "data": [encoded_fingerprint(examples), encoded_fingerprint(held_out)],
        "schedules": [list(schedule) for schedule in served],
        "base configuration": base.to_json(),
        "seed": seed,
        "deterministic mode": deterministic,
        "protected tokens": model.keep_first,
    }
    state = TuningState(Path(folder), subject)
    if any(entry.has_ended for entry in state.entries().values()):
        on_result(*state.progress())
        on_progress(state.done())
    if state.numbers_left(trials):
        shared = SharedModel.of(model.model, cluster_address(address) is None)
        training = _Training(shared, model.keep_first, list(examples), list(held_out), served, base, prefix_bytes)
        with cluster(address, workers):
            bookkeeping = _Bookkeeping(state, on_result, on_progress)
            _train_trials(training, state, trials, seed, workers, deterministic, model.device.type, bookkeeping)
    return state.outcome(trials, base)


@dataclass(frozen=True)
class _Training:
    """Data that all trials share, model weights included, in Ray's object store."""

    model: SharedModel
    keep_first: int
    examples: Sequence[EncodedExample]
    held_out: Sequence[EncodedExample]
    schedules: Sequence[SparsitySchedule]
    base: DistillationConfig
    prefix_bytes: int

    def run(self, config: Mapping[str, Any]) -> None:
        """Train a router, and report to Tune at each evaluation."""
        on_gpu = bool(ray.get_gpu_ids())
        keep_freed_memory(_LARGEST_KEPT_BYTES)
        keep_few_kernels()
        if not on_gpu:
            # A worker has one core; more threads than that would fight with the other workers.
            torch.set_num_threads(1)
        module: Any = self.model.load().to("cuda" if on_gpu else "cpu")
        hyperparameters = replace(self.base, **{name: config[name] for name in TUNED})
        torch.manual_seed(hyperparameters.seed)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=config["scratch"]) as name:
            folder = Path(name)
            before = _take_up(config["checkpoint"], folder)

            def report(step: int, kl: float, is_trained: bool) -> None:
                seconds = before + time.monotonic() - began
                (folder / _SECONDS_FILE).write_text(repr(seconds))
                figures = {_STEP: step, _KL: kl, _SECONDS: seconds, _IS_TRAINED: is_trained}
                tune.report(figures, checkpoint=tune.Checkpoint.from_directory(folder))

            def on_step(step: int, kl: float) -> None:
                if step % hyperparameters.evaluate_every == 0 and step < hyperparameters.steps:
                    report(step, kl, False)

            trained = distill(
                SkippingModel(module, self.keep_first),
                self.examples,
                self.schedules,
                hyperparameters,
                held_out=self.held_out,
                checkpoint=folder / TRAINING_FILE,
                # A GPU's memory is no share of the machine's.
                prefixes=PrefixStore(0 if on_gpu else self.prefix_bytes),
                on_step=on_step,
                on_progress=partial(TrialShares(config["scratch"]).write, config["number"]),
            )
            report(len(trained.curves["step"]), min(trained.curves["held_out_kl"]), True)


def _take_up(checkpoint: str | None, folder: Path) -> float:
    """Copies the last checkpoint to a folder; gives the seconds that the trial had taken, 0 without a checkpoint."""
    restored = tune.get_checkpoint()
    # Tune restores a trial whose worker died; the state has the checkpoint if the whole tuning did.
    source = Path(restored.path if restored is not None else checkpoint or "")
    if not (source / TRAINING_FILE).is_file():
        return 0.0
    for name in (TRAINING_FILE, _SECONDS_FILE):
        shutil.copy(source / name, folder / name)
    return float((folder / _SECONDS_FILE).read_text())


def _train_trial(config: dict[str, Any], training: _Training) -> None:
    try:
        training.run(config)
    except CoreError as error:
        # Tune would try again what can only fail again. No figure of step 0 stops other trials.
        tune.report({_STEP: 0, _KL: math.inf, _SECONDS: 0.0, _IS_TRAINED: False, _ERROR: str(error)})


class _Proposals(OptunaSearch):
    """Gives each trial its number and hyperparameters: those that are set already, then what TPE makes of the others.

    Args:
        space: Ranges of the hyperparameters.
        state: State of the tuning, in which trials are noted as they begin.
        set_before: Trials with given hyperparameters, trained first.
        numbers: Numbers of the other trials.
        sampler: Sampler of their hyperparameters.
    """

    def __init__(
        self,
        space: dict[str, BaseDistribution],
        state: TuningState,
        set_before: Sequence[TuningEntry],
        numbers: Iterator[int],
        sampler: optuna.samplers.BaseSampler,
    ) -> None:
        points = [dict(entry.config) for entry in set_before]
        super().__init__(space, metric=_KL, mode="min", points_to_evaluate=points, sampler=sampler)
        self._state = state
        self._set_before = list(set_before)
        self._numbers = numbers
        for entry in state.entries().values():
            if entry.has_ended:
                self.add_evaluated_point(dict(entry.config), entry.held_out_kl)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The hyperparameters of one of Tune's trials."""
        config = super().suggest(trial_id) or {}
        entry = self._set_before.pop(0) if self._set_before else TuningEntry(next(self._numbers), config)
        self._state.write(entry)
        checkpoint = entry.checkpoint and str(self._state.folder / entry.checkpoint)
        return {**config, "number": entry.number, "checkpoint": checkpoint, "scratch": str(self._state.scratch)}


class _Halving(ASHAScheduler):
    """ASHA that never stops the base configuration and finished trials."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Tune's decision on a trial."""
        decision: str = super().on_trial_result(tune_controller, trial, result)
        return self.CONTINUE if trial.config["number"] == 0 or result.get(_IS_TRAINED) else decision


class _Bookkeeping(tune.Callback):
    """Writes Tune's results to the tuning's state as they arrive."""

    def __init__(
        self, state: TuningState, on_result: Callable[[int, float], None], on_progress: Callable[[float], None]
    ) -> None:
        self._state = state
        self._on_result = on_result
        self._on_progress = on_progress
        self._has_news = False
        self._looked_at = self._done = 0.0
        self._to_say: list[tuple[int, float]] = []

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes its callbacks down, but nobody reads that, and what is called here cannot be pickled."""
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Keep the figures."""
        self._write(trial, steps=result[_STEP], held_out_kl=result[_KL], seconds=result[_SECONDS])
        self._has_news = True

    def on_checkpoint(self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **_: Any) -> None:
        """Keep where the checkpoint is, which by now has been written."""
        self._write(trial, checkpoint=os.path.relpath(checkpoint.path, self._state.folder))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Keep how the trial ended."""
        last = trial.last_result or {}
        if _ERROR in last:
            _log.warning("Trial %d of a router's tuning failed: %s", trial.config["number"], last[_ERROR])
            self._write(trial, state="failed", error=last[_ERROR])
        elif last.get("done"):
            self._write(trial, state="trained" if last[_IS_TRAINED] else "stopped")
        else:
            return
        self._to_say.append(self._state.progress())
        self._has_news = True

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Say which trials ended and how far others are: here, as elsewhere Tune takes errors for those of a trial."""
        if self._has_news or time.monotonic() - self._looked_at >= TrialShares.SECONDS:
            self._has_news, self._looked_at, done = False, time.monotonic(), self._state.done()
            # A trial whose worker died is further back.
            if done > self._done:
                self._done = done
                self._on_progress(done)
        while self._to_say:
            self._on_result(*self._to_say.pop(0))

    def _write(self, trial: Any, **changes: Any) -> None:
        self._state.write(replace(self._state.entries()[trial.config["number"]], **changes))


def _train_trials(
    training: _Training,
    state: TuningState,
    trials: int,
    seed: int,
    workers: int,
    deterministic: bool,
    device: str,
    bookkeeping: _Bookkeeping,
) -> None:
    """Train what is left to train."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    left = state.numbers_left(trials)
    space = search_space(training.base)
    # Those known ahead: all of them, or the base configuration.
    configs = drawn_configs(training.base, trials if deterministic else 1, seed)
    entries = {number: TuningEntry(number, config) for number, config in enumerate(configs)} | state.entries()
    # Each call is a new run of Tune, so that no checkpoint of the state is overwritten.
    runs = state.folder / "runs"
    name = str(next(number for number in itertools.count() if not (runs / str(number)).exists()))
    # Else the same seed would propose again what it did in an earlier run.
    own_seed = random.Random(f"{seed}/{len(state.entries())}").getrandbits(32)
    proposals = _Proposals(
        space,
        state,
        [entries[number] for number in left if number in entries],
        iter([number for number in left if number not in entries]),
        optuna.samplers.TPESampler(seed=own_seed, n_startup_trials=_RANDOM_TRIALS),
    )
    trainable = tune.with_parameters(_train_trial, training=training)
    tuner = tune.Tuner(
        tune.with_resources(trainable, _resources(device, workers)),
        tune_config=tune.TuneConfig(
            metric=_KL,
            mode="min",
            search_alg=proposals,
            scheduler=None if deterministic else _halving(training.base),
            num_samples=len(left),
            max_concurrent_trials=workers,
            reuse_actors=True,
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(runs),
            verbose=0,
            callbacks=[bookkeeping],
            # Two, since Tune removes an older one right after the state learns of the new one.
            checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
            failure_config=tune.FailureConfig(max_failures=_MAX_FAILURES),
        ),
    )
    try:
        results = tuner.fit()
    except (RayError, TuneError) as error:
        raise EvaluationError(f"The router's hyperparameters could not be tuned: {cause_of(error)}") from error
    _check(results.errors, state, deterministic)


def _halving(base: DistillationConfig) -> _Halving:
    """Lets the better half go on after a quarter of the base configuration's steps, and each time they double."""
    # No trial reaches the limit, so that each of them says itself that it is through.
    limit = 2 * base.steps + 1
    grace = min(max(base.evaluate_every, base.steps // 4), limit)
    return _Halving(time_attr=_STEP, max_t=limit, grace_period=grace, reduction_factor=2)


def _resources(device: str, workers: int) -> dict[str, float]:
    """Resources of a trial, at most a core or a GPU, so that all workers train at once."""
    kind = "GPU" if device == "cuda" else "CPU"
    here = ray.cluster_resources().get(kind, 0.0)  # type: ignore[no-untyped-call]
    share = min(1.0, math.floor(here / workers * _SHARES) / _SHARES)
    return {"cpu": 0.0, "gpu": share} if kind == "GPU" else {"cpu": share}


def _folder_name(trial: Any) -> str:
    return f"trial-{trial.config['number']}"


def _check(errors: Sequence[Exception], state: TuningState, deterministic: bool) -> None:
    """Reports trials whose workers died repeatedly."""
    if errors and (deterministic or not any(entry.state == "trained" for entry in state.entries().values())):
        raise EvaluationError(
            f"A router's trial could not be trained: {cause_of(errors[0])}. Do it again to go on with what there is."
        ) from errors[0]
    for error in errors:
        _log.warning("A router's trial could not be trained and does not count: %s", cause_of(error))
