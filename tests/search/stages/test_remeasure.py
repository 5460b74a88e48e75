"""A study's latency profile can be renewed: all that was predicted follows it, at once or not at all."""

from __future__ import annotations

import json
import shlex
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ftp_core.cost.profile import LatencyProfile
from ftp_core.schedule import SparsitySchedule
from search.config.run_config import RunConfig
from search.errors import SearchError
from search.inputs.data import Workload, load_workload
from search.problem.costs import Costs
from search.problem.objectives import OBJECTIVES
from search.progress.progress_view import ProgressView
from search.stages.measure import timed_prompts
from search.stages.open_study import OpenStudy
from search.stages.remeasure import predict_from
from studies import StudyState, StudyStore, Trial, TrialState, best_point, front, knee
from studies.pareto import front_volume
from studies.records.study_facts import ProfileRecord, Round, StudyFacts, TimedInput
from tests.search.command import evaluate_here, run_here
from tests.search.made_up_profiles import made_up
from tests.studies.records import trial

N_BLOCKS = 12
SMALL: dict[str, Any] = {
    "calibration_items": 4,
    "validation_items": 4,
    "test_items": 4,
    "search_items": 4,
    "latency_batch": 2,
    "rounds": 0,
    "measured_points": 2,
    "timed_runs": 2,
    "profile_seconds": 1.0,
    "export": "none",
    "workers": 1,
}
LEVELS = [0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9]


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_workload("demo", "demo", 0, RunConfig.checked(**SMALL).sizes)


@pytest.fixture
def study(workload: Workload, tmp_path: Path) -> Iterator[OpenStudy]:
    """A study that has searched, with the profile that `predicted` gives."""
    config = RunConfig.checked(**SMALL, out=str(tmp_path / "out"))
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        store.studies.create("one", config.model_dump(), OBJECTIVES)
        with store.runs.lease("one") as lease:
            study = OpenStudy(store, "one", lease, config, workload, ProgressView(Console(quiet=True)))
            _search(study, _profile(study))
            yield study


def _profile(study: OpenStudy, **facts: Any) -> LatencyProfile:
    batch, length = timed_prompts(study).ids.shape
    return made_up(study.workload, [(batch, length)], **facts)


def _slower(profile: LatencyProfile) -> LatencyProfile:
    """Another one, by which skipping gains nothing below half of the tokens, and all takes longer."""
    [shape] = profile.shapes
    length = shape.length
    kept, times = (1, length // 2, length - 1, length), ((1.0, 7.0, 7.0, 6.5),) * len(profile.kinds)
    other = replace(
        shape, kept=kept, block_ms=times, iqr_ms=times, listen_ms=times, held=kept, decode_block_ms=times, fixed_ms=5.0
    )
    return LatencyProfile((other,), profile.blocks, profile.kinds, profile.conditions)


def _volume(trials: Sequence[Trial], dense_ms: float) -> float:
    measured = front_volume(OBJECTIVES, trials, dense_ms)
    assert measured is not None
    return measured.of(trials)


def _search(study: OpenStudy, profile: LatencyProfile) -> None:
    """What a search with a profile leaves behind, a refinement with the static router and a failed trial included."""
    store, name = study.store, study.name
    batch, length = profile.batch, profile.length
    costs = Costs(study.workload.model.skipping, batch, length, profile)
    for number, level in enumerate(LEVELS):
        schedule = SparsitySchedule.uniform(level, N_BLOCKS)
        known = costs.of(schedule)
        made = trial(number, (level**2, known["latency_ms"]), tuple(schedule))
        made = replace(made, metrics={"kl": level**2, "perplexity": 2.0, **known}, round=int(number > 4))
        store.trials.append(name, made)
    store.trials.append(name, trial(len(LEVELS), None, (0.5,) * N_BLOCKS))
    trials = store.trials.of(name)
    dense = costs.dense("latency_ms")
    one = Round(1, 0, None, 5, 2, _volume(trials[:5], dense), _volume(trials, dense))
    kept = ProfileRecord.model_validate(profile.to_json())
    store.studies.update_facts(
        name, StudyFacts(timed_input=TimedInput(batch, length), latency_profile=kept, rounds=(one,))
    )
    for stage in ("search", "measure", "select", "test", "report"):
        store.runs.begin_stage(name, stage)
        store.runs.end_stage(name, stage, StudyState.FINISHED)
    store.studies.choose_trial(name, knee(front(trials)).number)


def test_all_that_was_predicted_follows_the_new_profile(study: OpenStudy) -> None:
    store, name = study.store, study.name
    before, other = store.trials.of(name), _slower(_profile(study))
    predict_from(study, other)
    after = store.trials.of(name)
    costs = Costs(study.workload.model.skipping, other.batch, other.length, other)
    for old, new in zip(before, after, strict=True):
        if old.state is TrialState.FAILED:
            assert new == old
            continue
        schedule = SparsitySchedule.of(old.schedule)
        ms = other.predict_ms(schedule)
        assert new == replace(old, values=(old.metrics["kl"], ms), metrics={**old.metrics, **costs.of(schedule)})
        assert new.values != old.values
    record = store.studies.get(name)
    assert record.facts.latency_profile is not None
    assert LatencyProfile.from_json(record.facts.latency_profile.to_json()) == other
    assert record.chosen_trial == best_point(front(after)).number
    # What a small sparsity costs more than it gains is dominated by the dense model now.
    assert {point.number for point in front(before)} > {point.number for point in front(after)} >= {0}
    [one] = record.facts.rounds
    dense = costs.dense("latency_ms")
    assert one.hypervolume_before == pytest.approx(_volume(after[:5], dense))
    assert one.hypervolume_after == pytest.approx(_volume(after, dense))
    # What rests on the front is due again, the search is not.
    assert [stage.name for stage in store.runs.stages(name)] == ["search"]


def test_every_process_that_knows_the_trials_reads_them_again(study: OpenStudy) -> None:
    with StudyStore(repr(study.store)) as other:
        known = other.trials.of(study.name)
        assert known == study.store.trials.of(study.name)
        predict_from(study, _slower(_profile(study)))
        assert other.trials.of(study.name) == study.store.trials.of(study.name) != known
        assert other.trials.n_ended(study.name) == len(known) and other.trials.n_begun(study.name) == len(known)


def test_it_happens_as_a_whole_or_not_at_all(study: OpenStudy) -> None:
    store, name = study.store, study.name

    def state() -> tuple[Any, ...]:
        record = store.studies.get(name)
        return store.trials.of(name), record.facts, record.chosen_trial, store.runs.stages(name)

    before = state()
    trials = [one for one in store.trials.of(name) if one.values is not None]
    broken = replace(trials[-1], number=len(LEVELS) + 5)
    # The last of them has not ended: all the others were replaced by then.
    with pytest.raises(Exception, match="has not ended"):
        store.revaluation.apply(
            name, [*(replace(one, values=(9.0, 9.0)) for one in trials), broken], StudyFacts(n_blocks=1), ["search"]
        )
    store.storage._finished.forget(store.storage.get_study_id_from_name(name))
    assert state() == before


def test_a_profile_by_which_nothing_keeps_the_limit_is_refused(study: OpenStudy) -> None:
    fast = study.config.model_copy(update={"max_latency_ms": 15.0})
    limited = replace(study, config=fast)
    before = study.store.trials.of(study.name), study.store.studies.get(study.name).facts
    too_slow = _slower(_profile(study))
    [shape] = too_slow.shapes
    too_slow = LatencyProfile((replace(shape, fixed_ms=100.0),), too_slow.blocks, too_slow.kinds, too_slow.conditions)
    with pytest.raises(SearchError, match="keeps the latency profile that it has.*at most 15 ms"):
        predict_from(limited, too_slow)
    assert (study.store.trials.of(study.name), study.store.studies.get(study.name).facts) == before
    # A limit that some keep makes the others break it.
    predict_from(replace(study, config=fast.model_copy(update={"max_latency_ms": 60.0})), _slower(_profile(study)))
    trials = [one for one in study.store.trials.of(study.name) if one.values is not None]
    assert {one.constraint_violation > 0 for one in trials} == {True, False}
    assert all((one.constraint_violation > 0) == (one.values is not None and one.values[1] > 60) for one in trials)


def test_the_advised_command_renews_the_profile_and_selects_again(
    study: OpenStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    evaluate_here(monkeypatch)
    busy = _profile(study, check_error=2.39)
    kept = ProfileRecord.model_validate(busy.to_json())
    study.store.studies.update_facts(study.name, StudyFacts(latency_profile=kept, rounds=()))
    study.lease.__exit__(None, None, None)
    shown = run_here(monkeypatch, capsys, tmp_path, "show", "one")
    words = shlex.split(shown.out.partition("`")[2].partition("`")[0])
    assert words == ["ftp-search", "resume", "one", "--remeasure"]
    result = run_here(monkeypatch, capsys, tmp_path, *words[1:], "--json")
    assert result.code == 0, result.err
    record = study.store.studies.get("one")
    assert record.facts.latency_profile is not None
    profile = LatencyProfile.from_json(record.facts.latency_profile.to_json())
    assert profile.shapes[0].measured_at > busy.shapes[0].measured_at
    trials = [one for one in study.store.trials.of("one") if one.values is not None]
    assert all(
        one.values == (one.metrics["kl"], profile.predict_ms(SparsitySchedule.of(one.schedule))) for one in trials
    )
    described = json.loads(result.out)
    assert described["selection"]["trial"] == record.chosen_trial
    assert {stage["name"]: stage["state"] for stage in described["stages"]}["report"] == "finished"
    # Later studies of this model and input find the profile, if it is one to be relied on.
    with closing(sqlite3.connect(tmp_path / "ftp-studies.db")) as raw:
        [kept] = [json.loads(row[0]) for row in raw.execute("SELECT profile FROM latency_profile")]
    assert LatencyProfile.from_json(kept) == profile


def test_a_study_that_predicts_no_latency_has_nothing_to_measure_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        store.studies.create("one", RunConfig.checked(**SMALL, cost="flops").model_dump(), ("kl", "flops"))
    result = run_here(monkeypatch, capsys, tmp_path, "resume", "one", "--remeasure")
    assert result.code == 2
    assert "predicts none: it trades KL against flops, without --max-latency-ms" in result.err
