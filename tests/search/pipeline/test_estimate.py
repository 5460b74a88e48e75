"""What a run will take is said before it begins, from a few evaluations, and nothing is begun for it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import search.pipeline.expected_memory
import search.pipeline.pipeline
from ftp_core.cpu_limits import n_cores
from ftp_core.skipping.fitted_keys import give_fitted_keys
from search.cli.show import describe_study
from search.config.run_config import RunConfig
from search.errors import ConfigError
from search.inputs.data import Workload, load_workload, search_set
from search.inputs.latency_profiles import keep_profile
from search.pipeline.estimate import Estimate, Memory, estimate_lines, estimate_run, expected
from search.pipeline.expected_memory import check_memory, memory_of
from search.pipeline.pace import Pace, measure_pace, tokens
from search.progress.progress_view import ProgressView
from search.stages.measure import timed_length
from search.stages.stage_states import all_stages
from studies import StudyStore
from studies.records.study_facts import StudyFacts
from tests.search.command import run_here
from tests.search.made_up_profiles import made_up

SMALL: dict[str, Any] = {
    "calibration_items": 8,
    "validation_items": 4,
    "test_items": 4,
    "search_items": 4,
    "workers": 2,
}


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_workload("demo", "demo", 0, RunConfig.checked(**SMALL).sizes)


PACE = Pace(dense_s=2.0, evaluation_s=1.0, fit_s=0.0, token_s=1e-4, evaluated_token_s=2e-4, decoded_s=0.01, examples=4)


def estimated(workload: Workload, store: StudyStore | None = None, **settings: Any) -> Estimate:
    config = RunConfig.checked(**{**SMALL, **settings})
    with StudyStore("sqlite://") as empty:
        memory = Memory(worker_bytes=1, process_bytes=1)
        return expected(config, workload, store or empty, all_stages(config), PACE, memory)


def test_every_stage_is_counted_in_its_order(workload: Workload) -> None:
    found = estimated(workload)
    assert list(found.seconds) == ["profile", *all_stages(RunConfig.checked(**SMALL))]
    assert found.total_s == pytest.approx(sum(found.seconds.values())) and found.evaluation_s == 1.0
    # The dynamic router of the first round is the tuning's.
    assert 0 < found.seconds["distill-1"] < found.seconds["distill-2"]
    untuned = estimated(workload, router_trials=0).seconds
    assert untuned["distill-1"] == untuned["distill-2"] == found.seconds["distill-2"]
    # Trials are shared among workers that have a core each; the start is the same for every search.
    n_at_once = min(2, n_cores())
    assert found.seconds["search"] - found.seconds["refine-1"] == pytest.approx((300 - 150) / n_at_once)
    more = estimated(workload, router_steps=160, measured_points=16)
    assert {name for name in found.seconds if more.seconds[name] > found.seconds[name]} == {
        *("tune", "distill-1", "distill-2", "measure", "test"),
    }
    longer = estimated(workload, new_tokens=(128,), latency_length=(64, 32))
    assert {name for name in found.seconds if longer.seconds[name] > found.seconds[name]} == {"time"}
    assert estimated(workload, new_tokens=(0,)).seconds["time"] < found.seconds["time"]
    assert json.loads(json.dumps(found.model_dump(mode="json")))["total_s"] == found.total_s


def test_a_few_evaluations_tell_the_pace(workload: Workload) -> None:
    config, shown = RunConfig.checked(**SMALL), io.StringIO()
    with StudyStore("sqlite://") as store:
        found = estimate_run(config, workload, store, all_stages(config), ProgressView(Console(file=shown)))
    assert found.examples >= 1 and 0 < found.evaluation_s < found.seconds["search"]
    assert "Estimating time and memory: done" in shown.getvalue()


def test_keys_to_be_fitted_take_time_and_memory_before_there_is_a_study(workload: Workload) -> None:
    config = RunConfig.checked(**SMALL, kv="keep", keys="fitted")
    model, quiet = workload.model.skipping.model, ProgressView(Console(quiet=True))
    try:
        with StudyStore("sqlite://") as store:
            [own, fitted] = (
                estimate_run(config.model_copy(update={"keys": keys}), workload, store, ["search"], quiet)
                for keys in ("own", "fitted")
            )
        assert measure_pace(config, workload, lambda: None).fit_s > 0
    finally:
        give_fitted_keys(model, None)
    assert fitted.memory.worker_bytes - own.memory.worker_bytes > 2**27
    assert measure_pace(config, workload, lambda: None).fit_s == 0


def test_what_is_known_already_takes_no_time(workload: Workload) -> None:
    shape = (8, timed_length(RunConfig.checked(**SMALL), workload))
    with StudyStore("sqlite://") as store:
        keep_profile(store, made_up(workload, [shape], check_error=0.5), replace=False)
        # A later study does not rely on that one.
        assert "profile" in estimated(workload, store).seconds
        keep_profile(store, made_up(workload, [shape]), replace=False)
        assert "profile" not in estimated(workload, store).seconds
    assert "profile" not in estimated(workload, cost="flops").seconds


def test_what_the_budget_leaves_out_is_said_with_what_would_be_enough(workload: Workload) -> None:
    ablations, routers = estimated(workload, trials=12, rounds=0).left_out
    assert "12 trials are too few to ablate each of 12 blocks" in ablations
    assert "--rounds is 0" in routers
    enough = int(ablations.partition("From --trials ")[2].split()[0])
    assert estimated(workload, trials=enough).left_out == ()
    # Proposers that learn nothing from them want none.
    assert estimated(workload, trials=12, sampler="random").left_out == ()
    [tuning] = estimated(workload, router_trials=0).left_out
    assert "--router-trials is 0" in tuning
    short = estimated(workload, trials=100_000, seconds=1.0)
    [cut] = [one for one in short.left_out if "--seconds is 1" in one]
    n = int(cut.removeprefix("about ").split(" of ")[0])
    assert n == 100_000 - 2 and short.seconds["search"] < 10


def test_memory_that_does_not_suffice_is_said() -> None:
    def made(available: int | None) -> Estimate:
        memory = Memory(worker_bytes=2 * 2**30, process_bytes=3 * 2**30, available_bytes=available)
        return Estimate(seconds={"search": 1.0}, evaluation_s=0.1, workers=4, memory=memory)

    assert made(None).fits and made(11 * 2**30).fits and not made(11 * 2**30 - 1).fits
    config = RunConfig.checked(**{**SMALL, "workers": 4}, prefix_mb=100, dtype="float32")
    fits, not_enough, unknown = (estimate_lines(made(free), config)[2] for free in (12 * 2**30, 8 * 2**30, None))
    assert "at most about 11.0 GiB (3.0 GiB here and 4 x 2.0 GiB for workers), of 12.0 GiB" in fits
    assert "that is too little. Give --workers 2, or --dtype bfloat16, or a smaller model." in not_enough
    assert "free" not in unknown and "too little" not in unknown
    check_memory(made(12 * 2**30), config)
    with pytest.raises(
        ConfigError, match=r"does not fit: at most about 11.0 GiB .* of 8.0 GiB .* Give --workers 2, or"
    ):
        check_memory(made(8 * 2**30), config)
    # Not even the process by itself: fewer workers are no help.
    with pytest.raises(ConfigError, match="Give --dtype bfloat16, or a smaller model"):
        check_memory(made(2**30), config)


def test_where_the_process_takes_most_by_itself_workers_do_not_count() -> None:
    memory = Memory(worker_bytes=2**30, process_bytes=2**30, alone_bytes=6 * 2**30, available_bytes=5 * 2**30)
    found = Estimate(seconds={"search": 1.0}, evaluation_s=0.1, workers=2, memory=memory)
    assert found.total_bytes == 6 * 2**30 and not found.fits
    config = RunConfig.checked(**SMALL, dtype="bfloat16")
    line = estimate_lines(found, config)[2]
    assert "6.0 GiB here without them" in line and "Give a smaller --latency-batch" in line


def test_on_a_gpu_the_workers_that_share_it_count() -> None:
    memory = Memory(worker_bytes=2 * 2**30, process_bytes=3 * 2**30, available_bytes=5 * 2**30, sharing=2)
    found = Estimate(seconds={"search": 1.0}, evaluation_s=0.1, workers=8, memory=memory)
    assert found.total_bytes == 7 * 2**30 and "on a GPU" in estimate_lines(found)[2]
    with pytest.raises(ConfigError, match="--gpu-share of 1 or more"):
        check_memory(found, RunConfig.checked(**SMALL, dtype="bfloat16", prefix_mb=0))


def test_memory_counts_what_workers_may_keep(workload: Workload) -> None:
    none, much = (
        memory_of(RunConfig.checked(**SMALL, prefix_mb=mib, trials=4, refine_trials=4), workload) for mib in (0, 512)
    )
    # As far as trials can fill it.
    assert 2**20 < much.worker_bytes - none.worker_bytes < 512 * 2**20
    full = memory_of(RunConfig.checked(**SMALL, prefix_mb=64, trials=100_000), workload)
    assert full.worker_bytes - none.worker_bytes == pytest.approx(64 * 2**20, rel=0.2)
    assert none.available_bytes is None or none.available_bytes > 0
    weights = sum(one.nbytes for one in workload.model.skipping.model.parameters())
    # They are copied once, to where all processes map them.
    assert none.process_bytes > weights and none.alone_bytes >= none.process_bytes + weights


def test_memory_of_training_counts_where_there_is_some(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    # What this process holds by itself differs from one moment to the next.
    monkeypatch.setattr("search.pipeline.expected_memory.resident_bytes", lambda: (2**30, 2**29))
    config = RunConfig.checked(**SMALL, prefix_mb=0)
    search, whole = (memory_of(config, workload, stages) for stages in (["search"], all_stages(config)))
    assert whole.alone_bytes > search.alone_bytes and whole.worker_bytes > search.worker_bytes + 2**20
    halves = memory_of(RunConfig.checked(**SMALL, prefix_mb=0, granularity="half"), workload, all_stages(config))
    assert halves.worker_bytes > whole.worker_bytes


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell what memory is shared")
def test_a_search_takes_about_what_was_expected(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/s.db"
    given = {**SMALL, "prefix_mb": 16, "trials": 12, "cost": "flops"}
    options = [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
    command = ["search", "--name", "one", *options, "--storage", storage, "--out", str(tmp_path)]
    # A process of its own: this one holds more than a run does.
    done = subprocess.run([sys.executable, "-m", "search", *command], check=True, capture_output=True, text=True)
    with StudyStore(storage) as store:
        facts = store.studies.get("one").facts
    assert facts.estimate is not None and facts.peak_worker_bytes is not None
    assert f"Peak memory of a worker: {facts.peak_worker_bytes / 2**30:.2f} GiB" in done.stderr
    assert 0.8 < facts.estimate.memory.worker_bytes / facts.peak_worker_bytes < 1.5


# What a worker of a tuning does, in a process of its own: prints what it was to hold at most, and what it did.
_TRAINS = """
from ftp_core.cost.process_memory import own_bytes, own_peak_bytes
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.prefixes import PrefixStore
from ftp_core.training.distillation import distill
from ftp_core.training.distillation_config import DistillationConfig
from search.config.run_config import RunConfig
from search.inputs.data import load_workload
from search.pipeline.expected_memory import memory_of

config = RunConfig.checked(calibration_items=32, validation_items=64, test_items=4, search_items=1, prefix_mb=400)
workload = load_workload("demo", "demo", 0, config.sizes)
expected = memory_of(config, workload, ("tune", "distill-1"))
model = workload.model.skipping
weights = own_bytes(model.model.parameters())
schedules = [SparsitySchedule.uniform(sparsity, model.n_blocks) for sparsity in (0.2, 0.3, 0.4, 0.5)]
training = DistillationConfig(steps=12)
prefixes = PrefixStore(config.held_out_prefix_bytes)
distill(model, workload.splits["calibration"], schedules, training, held_out=workload.splits["validation"],
        prefixes=prefixes)
print(expected.worker_bytes, own_peak_bytes(model.device) - weights)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell what memory is shared")
def test_a_training_takes_about_what_was_expected() -> None:
    done = subprocess.run([sys.executable, "-c", _TRAINS], check=True, capture_output=True, text=True)
    expected_bytes, peak_bytes = map(int, done.stdout.split())
    assert 0.8 < expected_bytes / peak_bytes < 1.25


def test_measuring_leaves_threads_and_random_numbers_as_they_were(workload: Workload) -> None:
    before, threads, parts = torch.get_rng_state(), torch.get_num_threads(), []
    pace = measure_pace(RunConfig.checked(**SMALL), workload, lambda: parts.append(None))
    assert torch.get_rng_state().equal(before) and torch.get_num_threads() == threads and len(parts) == 3
    assert 1 <= pace.examples <= 4 and pace.decoded_s > 0
    # A core alone is what all of them do no worse than.
    n = tokens(search_set(RunConfig.checked(**SMALL), workload))
    assert pace.token_s <= pace.dense_s / n * (1 + 1e-9)


@given(st.lists(st.floats(0.0, 1e5), min_size=1, max_size=5), st.integers(1, 5))
def test_the_lines_add_up_rounds_and_stay_few(seconds: list[float], rounds: int) -> None:
    stages = {f"distill-{n}": taken for n in range(1, rounds + 1) for taken in seconds[:1]}
    memory = Memory(worker_bytes=1, process_bytes=1)
    lines = estimate_lines(Estimate(seconds={"search": 5.0, **stages}, evaluation_s=0.1, workers=1, memory=memory))
    assert len(lines) == 3 and "search 0:05" in lines[1]
    if rounds > 1 and rounds * seconds[0] >= 1:
        assert f"distill ({rounds} rounds)" in lines[1]


def test_a_dry_run_prints_the_estimate_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    small = [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()]
    for command in ("run", "search"):
        result = run_here(
            monkeypatch, capsys, tmp_path, command, "--name", "mine", *small, "--trials", "12", "--dry-run"
        )
        assert result.code == 0, result.err
        lines = result.out.splitlines()
        assert lines[0].startswith("About ") and "a schedule takes about" in lines[0]
        assert "search" in lines[1] and ("distill" in lines[1]) == (command == "run")
        assert any("too few to ablate" in line for line in lines)
        assert list(tmp_path.iterdir()) == []
    told = run_here(monkeypatch, capsys, tmp_path, "run", *small, "--repeats", "3", "--dry-run", "--json", "--quiet")
    assert json.loads(told.out)["repeats"] == 3 and told.err == "" and list(tmp_path.iterdir()) == []
    # What no search can be made of is refused as ever.
    refused = run_here(monkeypatch, capsys, tmp_path, "run", *small, "--dry-run", "--dense-blocks", "40")
    assert refused.code == 2 and "Dense block 40" in refused.err and list(tmp_path.iterdir()) == []


def test_a_run_that_does_not_fit_is_refused_and_can_go_on_where_it_does(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.pipeline.pipeline, "first_search", lambda _: None)
    config = RunConfig.checked(**SMALL, trials=12, cost="flops", dtype="float32")
    with StudyStore("sqlite://") as store:
        store.studies.create("one", config.model_dump(), ("kl", "flops"))
        with store.runs.lease("one") as lease:
            view = ProgressView(Console(file=io.StringIO()))
            pipeline = search.pipeline.pipeline.Pipeline(store, "one", lease, view, config, workload)
            with monkeypatch.context() as scarce:
                scarce.setattr(search.pipeline.expected_memory, "free_bytes", lambda device: 0)
                with pytest.raises(ConfigError, match=r"does not fit: at most about .* GiB .* Give "):
                    pipeline.search_only()
            assert store.studies.get("one").facts.estimate is None and not store.trials.n_begun("one")
            pipeline.search_only()
            assert store.studies.get("one").facts.estimate is not None


def test_a_study_keeps_what_was_expected_as_it_began(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a search finds has no say in this.
    monkeypatch.setattr(search.pipeline.pipeline, "first_search", lambda _: None)
    config, shown = RunConfig.checked(**SMALL, trials=12, cost="flops"), io.StringIO()
    with StudyStore("sqlite://") as store:
        store.studies.create("one", config.model_dump(), ("kl", "flops"))
        with store.runs.lease("one") as lease:
            for quiet in (True, False):
                view = ProgressView(Console(file=shown, width=400), quiet=quiet)
                search.pipeline.pipeline.Pipeline(store, "one", lease, view, config, workload).search_only()
                kept = store.studies.get("one").facts.estimate
                assert kept is not None and list(kept.seconds) == ["search"] and kept.total_s > 0
                # Said once, and not by a quiet view.
                assert "a schedule takes about" not in shown.getvalue()
                store.runs.forget_stages("one", ["search"])
            store.studies.update_facts("one", StudyFacts(estimate=None))
            search.pipeline.pipeline.Pipeline(store, "one", lease, view, config, workload).search_only()
        description = describe_study(store, "one")
    assert shown.getvalue().count("a schedule takes about") == 1 and "too few to ablate" in shown.getvalue()
    assert description["estimate"]["left_out"] != []
