"""The whole path, as a user walks it: real model, real workers, real database."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from ftp_core import DynamicRouter, FTPForCausalLM, HiddenRouter, StaticRouter
from studies import StudyStore, Trial, front
from studies.records.confirmed import CONFIRMED_KL, FRESH_ITEMS, FRESH_KL
from tests.search.command import COMMAND, heed_signals, rely_on_profile, run_process

# Ray workers load torch first; under load that takes its time.
pytestmark = pytest.mark.timeout(1200)

FEW = (
    *("--rounds", "0", "--search-items", "8", "--calibration-items", "16", "--validation-items", "12"),
    *("--test-items", "12", "--measured-points", "3", "--timed-runs", "2", "--profile-seconds", "2"),
    *("--latency-batch", "2", "--latency-length", "48", "--new-tokens", "0"),
)
REFINED = (
    *(
        "--router-steps",
        "6",
        "--router-schedules",
        "2",
        "--rounds",
        "1",
        "--refine-trials",
        "8",
        "--router-trials",
        "0",
    ),
    *("--search-items", "8", "--calibration-items", "24", "--validation-items", "12", "--test-items", "24"),
    *("--measured-points", "3", "--timed-runs", "2"),
)
STAGES = ["search", "distill-1", "refine-1", "measure", "select", "test", "time", "export", "report"]


@pytest.mark.slow
def test_a_small_run_goes_all_the_way_and_can_be_extended(tmp_path: Path) -> None:
    result = run_process("run", "--name", "small", "--trials", "12", "--workers", "2", *REFINED, "--json", cwd=tmp_path)
    assert result.code == 0, result.err
    shown = result.json()
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}", create=False) as store:
        runs = store.routers.of("small")
    best = min(runs, key=lambda run: run.held_out_kl)
    # Without a better router there is nothing to search again with.
    n_refined = 8 * best.beats_static
    stages = [stage for stage in STAGES if n_refined or stage != "refine-1"]
    assert shown["trials"] == 12 + n_refined and shown["state"] == "finished"
    assert [(s["name"], s["state"]) for s in shown["stages"]] == [(stage, "finished") for stage in stages]
    assert ("no trained router" in shown["rounds_ended"]) == (not n_refined)
    tested = {m["variant"]: m for m in shown["measurements"] if m["split"] == "test"}
    assert {"dense", "uniform", "static", "dynamic", *(["refined"] if n_refined else [])} <= set(tested)
    assert {m["split"] for m in shown["measurements"]} == {"validation", "test"}
    dense = tested["dense"]
    assert dense["kl"] < 1e-6 and dense["accuracy"] >= 0.9
    assert all(m["latency_ms"] > 0 and m["kl_low"] <= m["kl"] <= m["kl_high"] for m in tested.values())
    assert all(Path(tmp_path, path).is_file() for path in shown["written"])

    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}", create=False) as store:
        trials, study, examples = store.trials.of("small"), store.studies.get("small"), store.results.examples("small")
    chosen = trials[shown["chosen_trial"]]
    selection = study.facts.selection
    assert selection is not None and selection.trial == chosen.number and selection.reason
    assert [trial.round for trial in trials] == [0] * 12 + [1] * n_refined
    assert [run.config["kind"] for run in runs] == ["dynamic", "hidden"]
    assert {trial.router for trial in trials[12:]} <= {best.number}
    assert examples is not None and examples.n_items == 24 and examples.prompts and examples.groups
    # Whether a shorter prompt that costs the same would do as well.
    against = shown["against_shortened_prompt"]
    selected = next(m for m in shown["measurements"] if m["selected"] and m["split"] == "test")
    assert (against["kl"], against["shortened_kl"]) == (selected["kl"], tested["uniform"]["kl"])
    assert against["flops_saved"] == pytest.approx(against["shortened_flops_saved"], abs=0.01)
    assert against["is_better"] == (examples.kl_ratios["uniform"][1] < 1)
    assert run_process("show", "small", cwd=tmp_path).out.splitlines()[1] == shown["verdict"]

    # What was exported by itself, and what is exported when asked for, is the selected schedule with its router.
    assert run_process("export", "small", "pruned", cwd=tmp_path).code == 0
    kinds = {"dynamic": DynamicRouter, "hidden": HiddenRouter}
    router = StaticRouter if chosen.router is None else kinds[runs[chosen.router].config["kind"]]
    for folder in (tmp_path / "ftp-out/small/model", tmp_path / "pruned"):
        pruned = AutoModelForCausalLM.from_pretrained(folder)
        assert isinstance(pruned, FTPForCausalLM) and isinstance(pruned.router, router)
        assert tuple(pruned.schedule) == chosen.schedule
        tokenizer = AutoTokenizer.from_pretrained(folder)
        [written] = pipeline("text-generation", model=pruned, tokenizer=tokenizer)(
            "Where is the cat?", max_new_tokens=3, do_sample=False
        )
        assert written["generated_text"].startswith("Where is the cat?")
        assert tuple(json.loads((folder / "schedule.json").read_text())["schedule"]) == chosen.schedule

    resumed = run_process("resume", "small", "--trials", "20", "--json", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    # The first search went on, and its new front was refined anew.
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}", create=False) as store:
        again, facts = store.trials.of("small"), store.studies.get("small").facts
    last = facts.rounds[-1]
    assert again[: len(trials)] == trials
    assert [trial.round for trial in again[len(trials) :]] == [0] * 8 + [2] * 8 * (last.router is not None)
    assert len({(trial.schedule, trial.router) for trial in again}) == len(again)
    assert [one.round for one in facts.rounds] == [1, 2]


@pytest.mark.slow
def test_a_new_router_for_the_chosen_schedule_is_compared_with_the_static_one(tmp_path: Path) -> None:
    few = (
        *("--search-items", "8", "--calibration-items", "24", "--validation-items", "12", "--test-items", "12"),
        *("--rounds", "0", "--router", "dynamic", "--measured-points", "3", "--timed-runs", "2"),
    )
    begun = run_process("run", "--name", "one", "--trials", "10", "--cost", "flops", *few, cwd=tmp_path)
    assert begun.code == 0, begun.err
    done = run_process(*("distill", "one", "--target-sparsity", "0.5", "--router-steps", "6", "--json"), cwd=tmp_path)
    assert done.code == 0, done.err
    shown = done.json()
    tested = {m["variant"]: m for m in shown["measurements"] if m["split"] == "test"}
    assert tested["dynamic"]["router"] == 0 and tested["static"]["router"] is None
    assert tested["dynamic"]["schedule"] == tested["static"]["schedule"]
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}", create=False) as store:
        [run], trials = store.routers.of("one"), store.trials.of("one")
        chosen = store.studies.get("one").chosen_trial
    assert run.config["steps"] == 6 and chosen is not None
    assert trials[chosen].router == (0 if run.beats_static else None)
    assert len(trials) == 10 + run.beats_static


def test_a_search_for_fewer_operations_needs_no_profile(tmp_path: Path) -> None:
    result = run_process(
        "search", "--name", "lean", "--cost", "flops", "--trials", "8", "--workers", "1", *FEW, "--json", cwd=tmp_path
    )
    assert result.code == 0, result.err
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}", create=False) as store:
        study, trials = store.studies.get("lean"), store.trials.of("lean")
    assert study.objectives == ("kl", "flops") and study.facts.latency_profile is None
    assert len(trials) == 8
    for trial in trials:
        assert trial.values == (trial.metrics["kl"], trial.metrics["flops"])
        assert trial.metrics["kv_bytes"] > 0 and "latency_ms" not in trial.metrics


def as_searched(trial: Trial) -> Trial:
    """A trial without what fresh items said of it."""
    of_fresh_items = {FRESH_KL, FRESH_ITEMS, CONFIRMED_KL}
    return replace(trial, metrics={name: value for name, value in trial.metrics.items() if name not in of_fresh_items})


@pytest.mark.parametrize(
    "stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)], ids=["ctrl-c", "sigterm"]
)
def test_a_stopped_search_is_kept_and_resume_goes_on(tmp_path: Path, stop: signal.Signals) -> None:
    url = f"sqlite:///{tmp_path / 'ftp-studies.db'}"
    running = subprocess.Popen(
        [*COMMAND, *("search", "--name", "long", "--trials", "100000", "--workers", "1"), *FEW],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_signals,
    )
    try:
        with StudyStore(url) as store:
            while running.poll() is None and not any(s.n_trials >= 3 for s in store.studies.summaries()):
                time.sleep(0.2)
        running.send_signal(stop)
        _, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130
    assert "ftp-search resume long" in err and "Traceback" not in err
    with StudyStore(url, create=False) as store:
        kept = store.trials.of("long")
        assert store.studies.get("long").state == "stopped" and len(kept) >= 3
    more = str(len(kept) + 4)
    resumed = run_process("resume", "long", "--trials", more, "--workers", "1", "--json", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    with StudyStore(url, create=False) as store:
        # Fresh items may have confirmed some of them in the end.
        assert [as_searched(trial) for trial in store.trials.of("long")[: len(kept)]] == kept
        # Ablations count as less than a trial each.
        assert len(kept) + 4 <= store.trials.spent("long", 0) < len(kept) + 5


@pytest.mark.slow
def test_a_real_checkpoint_with_text_from_the_user_goes_all_the_way(tmp_path: Path, assets: Path) -> None:
    lines = (assets / "data/wikitext2-valid-300k.txt").read_text().splitlines()
    paragraphs = [line.split() for line in lines if len(line.split()) > 60][:120]
    rows = [{"prompt": " ".join(words[:40]), "completion": " " + " ".join(words[40:52])} for words in paragraphs]
    (tmp_path / "wiki.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run_process(
        *("run", "--name", "wiki", "--model", assets / "models/stories260K", "--data", "wiki.jsonl"),
        *("--trials", "12", "--workers", "2", "--target-sparsity", "0.3", "--json"),
        *(
            "--router-steps",
            "10",
            "--test-items",
            "24",
            "--rounds",
            "1",
            "--refine-trials",
            "8",
            "--router-trials",
            "2",
        ),
        cwd=tmp_path,
    )
    assert result.code == 0, result.err
    shown = result.json()
    assert len(shown["front"]) >= 1
    # The target is met on the grid: five blocks in steps of 0.05.
    assert all(abs(point["overall_sparsity"] - 0.3) < 0.006 for point in shown["front"])
    assert all(measured["accuracy"] is None for measured in shown["measurements"])
    assert (tmp_path / "ftp-out/wiki/report.html").is_file()


@pytest.mark.slow
def test_constraints_are_kept_and_another_study_is_built_upon(tmp_path: Path) -> None:
    items = ("--search-items", "16", "--calibration-items", "32", "--validation-items", "12", "--test-items", "12")
    small = ("--workers", "2", "--trials", "24", "--dense-blocks", "0,-1", *items)
    first = run_process("search", "--name", "first", *small, "--fidelities", "0.25,1", "--json", cwd=tmp_path)
    assert first.code == 0, first.err
    assert first.json()["pruned_trials"] > 0
    rely_on_profile(tmp_path)
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}", create=False) as store:
        trials = store.trials.of("first")
        latencies = sorted(trial.values[1] for trial in trials if trial.values)
        limit = latencies[len(latencies) // 2]
        assert 24 <= store.trials.spent("first", 0) < 25
        assert all(trial.schedule[0] == trial.schedule[-1] == 0 for trial in trials)
        pruned = [trial for trial in trials if trial.state == "pruned"]
        assert {trial.fidelity for trial in pruned} == {0.25} and not set(map(id, pruned)) & set(map(id, front(trials)))

        options = ("--max-latency-ms", str(limit), "--warm-start", "first")
        second = run_process("search", "--name", "second", *small, *options, cwd=tmp_path)
        assert second.code == 0, second.err
        # Ablations, on a part of the items, tell of single blocks whatever the limit.
        after = [trial for trial in store.trials.of("second") if trial.fidelity == 1.0]
        assert all(trial.values is not None and trial.values[1] <= limit for trial in after)
        known = {trial.schedule: trial for trial in trials if trial.fidelity == 1.0 and trial.state == "finished"}
        shared = [trial for trial in after if trial.schedule in known]
        best = {point.schedule for point in front(trials) if point.values and point.values[1] <= limit}
        assert {trial.schedule for trial in shared} >= best and len(best) > 0
        assert all(trial.seconds == 0.0 and trial.values == known[trial.schedule].values for trial in shared)

        third = run_process("search", "--name", "third", *small, "--min-accuracy", "0.9", "--json", cwd=tmp_path)
        assert third.code == 0, third.err
        right = {trial.number: trial.metrics["accuracy"] for trial in store.trials.of("third")}
        assert min(right.values()) < 0.9 and all(right[point["number"]] >= 0.9 for point in third.json()["front"])
