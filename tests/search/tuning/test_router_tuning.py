"""Tuning finds hyperparameters that are never worse than those it began with, and survives whatever ends it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample
from ftp_core.training.distillation import distill
from ftp_core.training.distillation_config import DistillationConfig
from search.errors import ConfigError, EvaluationError, SearchError
from search.evaluators.ray_cluster import cluster
from search.tuning.router_hyperparameters import TUNED, drawn_configs, search_space
from search.tuning.router_tuning import RouterTuning, tune_router
from search.tuning.tuning_state import TrialShares, TuningEntry, TuningState
from tests.conftest import ROOT
from tests.ftp_core.tiny_models import N_BLOCKS, tiny

pytestmark = pytest.mark.timeout(600)

TRIALS = 4
EXAMPLES = [EncodedExample(tuple(range(1 + i, 25 + i)), ((3 + i, 4),), 0, False) for i in range(16)]
# As what training starts with decides, so that there is something to gain.
BASE = DistillationConfig(steps=40, batch_size=4, evaluate_every=5, consider_static=False, seed=3)

# In a process of its own.
TUNE_ALONE = (
    "import sys; from pathlib import Path; from tests.search.tuning.test_router_tuning import tune; "
    "tune(Path(sys.argv[1]), sys.argv[2] == 'deterministic', workers=1)"
)


def tune(folder: Path, deterministic: bool = True, **changes: Any) -> RouterTuning:
    arguments: dict[str, Any] = {
        "trials": TRIALS,
        "seed": 1,
        "workers": 2,
        "address": None,
        "deterministic": deterministic,
        "folder": folder,
        "held_out": EXAMPLES[12:],
        "base": BASE,
        **changes,
    }
    schedules = [SparsitySchedule.uniform(0.5, N_BLOCKS)]
    return tune_router(SkippingModel(tiny()), EXAMPLES[:12], schedules=schedules, **arguments)


def entries(folder: Path) -> dict[int, dict[str, Any]]:
    found = (json.loads(path.read_text()) for path in sorted(folder.glob("trials/*.json")))
    return {entry["number"]: entry for entry in found}


def hyperparameters(config: DistillationConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in TUNED}


@pytest.fixture(scope="module", autouse=True)
def _one_ray() -> Iterator[None]:
    """A Ray for all tunings of this process; two workers have half a core each."""
    with cluster(None, 1):
        yield
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def ended(folder: Path) -> list[tuple[int, float]]:
    """What was called while the whole tuning ran."""
    return []


@pytest.fixture(scope="module")
def done() -> list[float]:
    """How far the whole tuning said that it was."""
    return []


@pytest.fixture(scope="module")
def whole(folder: Path, ended: list[tuple[int, float]], done: list[float]) -> RouterTuning:
    """A deterministic tuning that nothing interrupted."""
    return tune(folder, on_result=lambda n, kl: ended.append((n, kl)), on_progress=done.append)


class TestDeterministicTuning:
    def test_the_base_configuration_is_the_first_trial_and_the_others_are_drawn_before(
        self, whole: RouterTuning
    ) -> None:
        assert [trial.config for trial in whole.trials] == drawn_configs(BASE, TRIALS, seed=1)
        assert whole.trials[0].config == hyperparameters(BASE)

    def test_every_trial_is_trained_to_its_end(self, whole: RouterTuning) -> None:
        assert [trial.steps for trial in whole.trials] == [trial.config["steps"] for trial in whole.trials]
        assert all(trial.seconds > 0 and math.isfinite(trial.held_out_kl) for trial in whole.trials)

    def test_the_lowest_held_out_kl_wins(self, whole: RouterTuning) -> None:
        best = min(whole.trials, key=lambda trial: trial.held_out_kl)
        assert hyperparameters(whole.best) == best.config
        assert dataclasses.replace(whole.best, **hyperparameters(BASE)) == BASE

    def test_the_training_of_the_best_is_handed_over_and_needs_no_step(
        self, whole: RouterTuning, tmp_path: Path
    ) -> None:
        assert whole.training is not None
        checkpoint = shutil.copy(whole.training, tmp_path / "training.safetensors")
        steps: list[int] = []
        trained = distill(
            SkippingModel(tiny()),
            EXAMPLES[:12],
            [SparsitySchedule.uniform(0.5, N_BLOCKS)],
            whole.best,
            held_out=EXAMPLES[12:],
            checkpoint=checkpoint,
            on_step=lambda step, kl: steps.append(step),
        )
        assert steps == []
        assert min(trained.curves["held_out_kl"]) == min(trial.held_out_kl for trial in whole.trials)

    def test_every_end_is_reported_with_the_lowest_kl_so_far(
        self, whole: RouterTuning, ended: list[tuple[int, float]]
    ) -> None:
        assert [n for n, _ in ended] == list(range(1, TRIALS + 1))
        kls = [kl for _, kl in ended]
        assert kls == sorted(kls, reverse=True)
        assert kls[-1] == min(trial.held_out_kl for trial in whole.trials)

    def test_it_says_how_far_it_is_also_between_ends(self, whole: RouterTuning, done: list[float]) -> None:
        assert done == sorted(done) and done[-1] == TRIALS
        assert any(n % 1 for n in done)

    def test_a_tuning_that_is_through_is_read_and_not_done_again(self, whole: RouterTuning, folder: Path) -> None:
        seen: list[tuple[int, float]] = []
        assert tune(folder, on_result=lambda n, kl: seen.append((n, kl)), address="nowhere:1") == whole
        assert [n for n, _ in seen] == [TRIALS]

    def test_a_folder_of_another_tuning_is_refused_with_what_differs(self, whole: RouterTuning, folder: Path) -> None:
        with pytest.raises(SearchError, match="another seed"):
            tune(folder, seed=2)
        with pytest.raises(SearchError, match="another data"):
            tune(folder, held_out=EXAMPLES[11:])

    @pytest.mark.parametrize("victim", ["worker", pytest.param("driver", marks=pytest.mark.slow)])
    def test_whatever_is_killed_the_outcome_is_the_same(self, whole: RouterTuning, tmp_path: Path, victim: str) -> None:
        if victim == "worker":
            with killing_a_worker(tmp_path):
                assert tune(tmp_path, workers=1) == whole
            return
        before = tune_until_killed(tmp_path, deterministic=True)
        # This one has a Ray of its own, and says nothing.
        code = TUNE_ALONE + "; import ray; assert not ray.is_initialized()"
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), "deterministic"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert tune(tmp_path) == whole
        check_goes_on(tmp_path, before)


class TestTuningWithHalving:
    def test_laggards_are_stopped_but_never_the_base_configuration(self, tmp_path: Path, capfd: Any) -> None:
        # One after the other: which of two workers is ahead decides who is a laggard.
        found = tune(tmp_path, deterministic=False, trials=8, workers=1)
        assert capfd.readouterr() == ("", "")
        assert len(found.trials) == 8
        assert found.trials[0].config == hyperparameters(BASE) and found.trials[0].steps == BASE.steps
        states = [entry["state"] for entry in entries(tmp_path).values()]
        assert "stopped" in states and set(states) == {"stopped", "trained"}
        best = min(found.trials, key=lambda trial: trial.held_out_kl)
        assert hyperparameters(found.best) == best.config

    @pytest.mark.slow
    def test_a_tuning_that_was_killed_goes_on_where_it_was(self, tmp_path: Path) -> None:
        before = tune_until_killed(tmp_path, deterministic=False)
        found = tune(tmp_path, deterministic=False)
        check_goes_on(tmp_path, before)
        assert len({json.dumps(trial.config) for trial in found.trials}) == TRIALS


def tune_until_killed(folder: Path, deterministic: bool) -> dict[int, dict[str, Any]]:
    """Kill a tuning when one trial has ended and another is under way; gives what it knew then."""
    mode = "deterministic" if deterministic else "not"
    running = subprocess.Popen(
        [sys.executable, "-c", TUNE_ALONE, str(folder), mode], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )

    def is_in_the_middle() -> bool:
        known = entries(folder).values()
        return any(entry["state"] != "begun" for entry in known) and any(
            entry["state"] == "begun" and entry["checkpoint"] for entry in known
        )

    try:
        while running.poll() is None and not is_in_the_middle():
            time.sleep(0.01)
        assert running.poll() is None, running.communicate()[1]
    finally:
        running.kill()
        running.communicate()
    return entries(folder)


def check_goes_on(folder: Path, before: dict[int, dict[str, Any]]) -> None:
    """What had ended was not touched; what was under way went on from its checkpoint."""
    after = entries(folder)
    resumed = {path.name for path in (folder / "runs" / "1").glob("trial-*")}
    assert sorted(after) == list(range(TRIALS)) and all(entry["state"] != "begun" for entry in after.values())
    for number, entry in before.items():
        if entry["state"] != "begun":
            assert after[number] == entry and f"trial-{number}" not in resumed
        elif entry["checkpoint"]:
            assert after[number]["config"] == entry["config"] and after[number]["seconds"] > entry["seconds"]
            n_reports = 1 + int(Path(after[number]["checkpoint"]).name.removeprefix("checkpoint_"))
            assert n_reports < math.ceil(after[number]["steps"] / BASE.evaluate_every)


class killing_a_worker:  # noqa: N801
    """Kills, once, the process that trains when a tuning's first checkpoint is there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._killer = threading.Thread(target=self._kill)
        self._is_over = threading.Event()
        self._killed: list[int] = []

    def __enter__(self) -> None:
        self._killer.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._killer.join()
        assert self._killed

    def _kill(self) -> None:
        while not self._is_over.wait(0.01):
            if any(entry["checkpoint"] for entry in entries(self._folder).values()):
                for pid in _trainers():
                    os.kill(pid, signal.SIGKILL)
                    self._killed.append(pid)
                if self._killed:
                    return


def _trainers() -> Iterator[int]:
    """This process's Ray workers that train."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (
                b"ray::ImplicitFunc" in (path / "cmdline").read_bytes()
                and _parent(_parent(int(path.name))) == os.getpid()
            ):
                yield int(path.name)
        except OSError:
            continue


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_an_error_of_the_callback_ends_the_tuning_and_loses_nothing(tmp_path: Path) -> None:
    def lose(ended: int, kl: float) -> None:
        raise LookupError("the lease is lost")

    with pytest.raises(LookupError, match="the lease is lost"):
        tune(tmp_path, trials=1, workers=1, on_result=lose)
    assert entries(tmp_path)[0]["state"] == "trained"
    assert len(tune(tmp_path, trials=1, address="nowhere:1").trials) == 1


def test_trials_that_cannot_be_trained_are_an_error_with_its_cause_and_not_tried_again(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(EvaluationError, match=r"No router could be trained: .*no example in held_out"):
            tune(tmp_path, trials=1, held_out=[])
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["0"]


def test_a_trial_tells_how_far_it_is_before_its_first_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, here, there = TuningState(tmp_path, {}), TrialShares(tmp_path / "scratch"), TrialShares(tmp_path / "scratch")
    for number in range(3):
        state.write(TuningEntry(number, {"steps": 40}, "trained" if number == 0 else "begun"))
    assert state.done() == 1.0
    here.write(1, 0.25)
    there.write(2, 0.5)
    assert state.done() == 1.75
    # Not each of a thousand batches a second writes a file.
    here.write(1, 0.5)
    assert state.done() == 1.75
    monkeypatch.setattr(time, "monotonic", lambda before=time.monotonic: before() + TrialShares.SECONDS)
    here.write(1, 0.5)
    assert state.done() == 2.0


@pytest.mark.parametrize("changes", [{"trials": 0}, {"workers": 0}])
def test_a_tuning_of_nothing_is_refused(tmp_path: Path, changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        tune(tmp_path, **changes)


@pytest.mark.parametrize("spoil", [lambda path: path.write_text("x"), lambda path: path.symlink_to("/proc/none")])
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    spoil(tmp_path / "folder")
    with pytest.raises(SearchError, match="can be written to"):
        tune(tmp_path / "folder")


def test_the_base_configuration_is_within_what_is_searched_however_strange() -> None:
    strange = DistillationConfig(lr=0.0, w_guide=0.123, w_sparsity=99.0, temperature=9.0, window=7, steps=1)
    for base in (BASE, strange):
        for name, distribution in search_space(base).items():
            own = getattr(base, name)
            assert distribution._contains(distribution.to_internal_repr(own)), name


def test_more_drawn_configurations_begin_like_fewer() -> None:
    few, many, others = drawn_configs(BASE, 3, 5), drawn_configs(BASE, 6, 5), drawn_configs(BASE, 3, 6)
    assert many[:3] == few and many[0] == others[0] and many[1] != others[1]
    assert all(DistillationConfig(**config) for config in many)
