"""Other methods run a study's test items beside its own schedules, and nothing that is known is done again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import search
from dashboards.report.methods import methods_tables
from ftp_core.baselines.catalogue import baseline
from ftp_core.baselines.protocol import Budget
from ftp_core.baselines.sharing import shared_copy
from ftp_core.cost import conditions, time_generation
from ftp_core.errors import ModelError
from ftp_core.quality.quality import QualitySet
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.fitted_keys import FittedKeys, fitted_keys_of, give_fitted_keys
from ftp_core.skipping.substitutes import Substitutes, give_substitutes
from search.cli.compare import print_compared
from search.comparison.compare import compare
from search.comparison.methods import method_names
from search.comparison.ours import OwnSchedules
from search.comparison.plan import ComparisonPlan, comparison_plan, listed
from search.config.run_config import RunConfig
from search.errors import ConfigError, SearchError
from search.inputs.data import Workload, load_workload
from search.problem.objectives import OBJECTIVES
from search.progress.progress_view import ProgressView
from search.stages.open_study import OpenStudy
from studies import Measurement, StudyStore
from studies.records.compared import OURS, Compared
from tests.search.command import run_here
from tests.studies.records import trial

SMALL: dict[str, Any] = {
    **{"calibration_items": 8, "validation_items": 4, "test_items": 6, "search_items": 8, "workers": 1},
    **{"cost": "flops", "latency_length": (48,), "latency_batch": 1, "timed_runs": 2},
}
LATE = SparsitySchedule([0.0] * 6 + [0.7] * 6)


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_workload("demo", "demo", 0, RunConfig.checked(**SMALL).sizes)


@pytest.fixture
def study(workload: Workload) -> Iterator[OpenStudy]:
    """A study with the dense schedule, a late one, and one that harms more at the same operations."""
    config = RunConfig.checked(**SMALL)
    with StudyStore("sqlite://") as store:
        store.studies.create("one", config.model_dump(), OBJECTIVES)
        for number, (values, schedule) in enumerate(
            [((0.0, 9.0), SparsitySchedule.uniform(0.0, 12)), ((0.3, 5.0), LATE), ((0.9, 5.0), LATE)]
        ):
            store.trials.append("one", trial(number, values, schedule))
        store.studies.choose_trial("one", 1)
        with store.runs.lease("one") as lease:
            yield OpenStudy(store, "one", lease, config, workload, ProgressView(Console(quiet=True)))


def test_rows_say_what_each_method_comes_to_on_the_same_items(study: OpenStudy) -> None:
    plan = ComparisonPlan(("random", "shortgpt"), (0.3,), "flops", 2)
    rows = compare(study, plan)
    assert [(one.method, one.seed) for one in rows] == [(OURS, 0), ("random", 0), ("random", 1), ("shortgpt", 0)]
    model, examples = study.workload.model.skipping, study.workload.examples("test")
    truth = QualitySet(model, examples)
    for one in rows:
        assert one.model is not None and not one.refused and one.target == 0.3
        made = OwnSchedules(study) if one.method == OURS else baseline(one.method)
        pruned = made.fit(model, study.workload.splits["calibration"], Budget(0.3, 1, 48), one.seed)
        expected = truth.evaluate_pruned(pruned, choices=True, items=True)
        assert one.model.kl == pytest.approx(expected.kl, abs=1e-6) and one.model.accuracy == expected.accuracy
        assert one.model.item_kl == pytest.approx([item.kl for item in expected.items], abs=1e-6)
        assert one.model.item_right == tuple(None if item.right is None else int(item.right) for item in expected.items)
        assert one.model.flops == pruned.flops(1, 48) and one.model.kv_bytes == pruned.kv_bytes(1, 48)
        assert one.model.flops_saved == pytest.approx(0.3, abs=0.06) and one.model.latency_ms > 0
        assert one.model.tokens_per_second is not None and one.model.repeats >= 2
    [ours] = [one.model for one in rows if one.method == OURS]
    assert ours is not None and "trial 1" in ours.sparsity
    assert study.store.comparisons.of("one") == rows


def test_what_stands_in_for_skipped_halves_is_ours_alone(study: OpenStudy) -> None:
    """Methods whose tokens keep keys and values would run the study's maps, too."""
    model, plan = study.workload.model.skipping, ComparisonPlan(("swiftkv",), (0.3,), "flops")
    late = SparsitySchedule.of_halves([0.0] * 4 + [0.6] * 8, [0.0] * 4 + [0.6] * 8, keeps_kv=True)
    study.store.trials.append("one", trial(3, (0.1, 5.0), late))
    without, plain = compare(study, plan)
    maps = Substitutes(model.n_blocks, model.model.config.hidden_size, 2)
    for weights in maps.parameters():
        torch.nn.init.normal_(weights, std=0.3, generator=torch.Generator().manual_seed(0))
    give_substitutes(model.model, maps, model.blocks)
    try:
        ours, swiftkv = compare(study, plan)
    finally:
        give_substitutes(model.model, None, model.blocks)
    assert ours.model is not None and without.model is not None and ours.model.kl != without.model.kl
    assert ours.model.n_parameters > without.model.n_parameters and ours.model.flops > without.model.flops
    # What is known of other methods holds, whatever stands in for halves.
    assert swiftkv == plain
    give_substitutes(model.model, maps, model.blocks)
    try:
        [_, with_maps] = compare(study, replace(plan, methods=("early_exit",)))
    finally:
        give_substitutes(model.model, None, model.blocks)
    made = baseline("early_exit").fit(model, study.workload.splits["calibration"], Budget(0.3, 1, 48))
    truth = QualitySet(model, study.workload.examples("test")).evaluate_pruned(made, items=True)
    assert with_maps.model is not None
    assert with_maps.model.item_kl == pytest.approx([item.kl for item in truth.items], abs=1e-6)


def test_fitted_keys_are_ours_alone(study: OpenStudy) -> None:
    model, plan = study.workload.model.skipping, ComparisonPlan(("swiftkv",), (0.3,), "flops")
    late = SparsitySchedule.of_halves([0.0] * 4 + [0.6] * 8, [0.0] * 4 + [0.6] * 8, keeps_kv=True)
    study.store.trials.append("one", trial(3, (0.1, 5.0), late))
    without, plain = compare(study, plan)
    prompts = [one.prompt for one in study.workload.splits["calibration"]]
    give_fitted_keys(model.model, FittedKeys(model, prompts))
    try:
        ours, swiftkv = compare(study, plan)
        made = baseline("swiftkv").fit(shared_copy(model), study.workload.splits["calibration"], Budget(0.3, 1, 48))
        assert fitted_keys_of(made.model.model) is None
    finally:
        give_fitted_keys(model.model, None)
    assert ours.model is not None and without.model is not None and ours.model.kl != without.model.kl
    assert ours.model.flops == without.model.flops and swiftkv == plain


def test_rows_of_other_machines_are_measured_anew(study: OpenStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ComparisonPlan(("first_k",), (0.3,), "flops")
    here = compare(study, plan)
    assert compare(study, plan) == here
    monkeypatch.setattr(conditions, "_cpu_name", lambda: "another processor")
    there = compare(study, plan)
    assert all(one.context != other.context for one, other in zip(here, there, strict=True))
    assert len(study.store.comparisons.of("one")) == 4


def test_what_is_known_is_not_done_again(study: OpenStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ComparisonPlan(("last_k",), (0.3,), "flops")
    first = compare(study, plan)
    measured: list[str] = []

    def fit(self: Any, *_: Any) -> None:
        measured.append(self.name)
        raise ModelError("fitted")

    monkeypatch.setattr(type(baseline("last_k")), "fit", fit)
    monkeypatch.setattr(OwnSchedules, "fit", fit)
    assert compare(study, plan) == first and not measured
    # Our row is of all trials: with another one it is made anew, and the others are not.
    study.store.trials.append("one", trial(3, (0.2, 5.0), LATE))
    again = compare(study, plan)
    assert measured == [OURS] and [one.refused for one in again] == ["fitted", ""]


def test_speed_at_other_prefills_joins_what_is_known(study: OpenStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ComparisonPlan(("last_k",), (0.3,), "flops")
    plain = compare(study, plan)
    timed: list[tuple[int, ...]] = []

    def noting(model: Any, ids_BL: torch.Tensor, *rest: Any, **more: Any) -> Any:
        timed.append(tuple(ids_BL.shape))
        return time_generation(model, ids_BL, *rest, **more)

    monkeypatch.setattr("search.comparison.compare.time_generation", noting)
    for one, before in zip(compare(study, replace(plan, shapes=((2, 16), (1, 64)))), plain, strict=True):
        assert one.model is not None and before.model is not None
        # Quality and the study's own prefill are not measured again.
        assert replace(one.model, shapes=()) == before.model
        assert [(speed.batch, speed.length) for speed in one.model.shapes] == [(2, 16), (1, 64)]
        assert all(speed.speedup > 0 and speed.latency_ms > 0 and speed.repeats >= 2 for speed in one.model.shapes)
    assert timed == [(2, 16), (1, 64)] * 2
    more = compare(study, replace(plan, shapes=((1, 64), (3, 32))))
    assert timed[4:] == [(3, 32)] * 2 and compare(study, replace(plan, shapes=((3, 32),))) == more
    new = compare(study, ComparisonPlan(("first_k",), (0.3,), "flops", shapes=((2, 16),)))[1].model
    assert new is not None and [(speed.batch, speed.length) for speed in new.shapes] == [(2, 16)]
    assert study.store.comparisons.of("one")[:2] == more and len(timed) == 8


def test_prefills_that_the_model_does_not_read_are_refused_before_anything_is_made(study: OpenStudy) -> None:
    context = study.workload.model.skipping.context
    with pytest.raises(ConfigError, match=f"--shapes has 1x{context + 1}, but the model reads at most {context}"):
        compare(study, ComparisonPlan(("last_k",), (0.3,), "flops", shapes=((1, 16), (1, context + 1))))
    assert not study.store.comparisons.of("one")
    [row, _] = compare(study, ComparisonPlan(("last_k",), (0.3,), "flops", shapes=((1, context),)))
    assert row.model is not None and row.model.shapes[0].length == context


def test_methods_that_cannot_be_applied_are_rows_that_say_why(
    study: OpenStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise ModelError("This family has no heads to prune.")

    monkeypatch.setattr(type(baseline("first_k")), "fit", refuse)
    rows = compare(study, ComparisonPlan(("first_k",), (0.8,), "flops"))
    assert [(one.method, one.model) for one in rows] == [(OURS, None), ("first_k", None)]
    assert "No schedule of study 'one' saves 80.0% of the operations" in rows[0].refused
    assert "ftp-search solve one --target-flops-saved 0.80" in rows[0].refused
    print_compared(Console(width=200), rows)
    assert "first_k: This family has no heads to prune." in capsys.readouterr().out


def test_models_are_matched_by_the_time_that_they_take(study: OpenStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    from search.comparison import compare as comparing

    def saved_time(self: Any, pruned: Any) -> float:
        # A clock by which half of what operations promise is kept.
        dense = Budget(0.0, 1, 48).dense_flops(pruned.dense)
        return 0.5 * (1 - pruned.flops(1, 48) / dense)

    monkeypatch.setattr(comparing._Comparing, "_saved_time", saved_time)
    [_, row] = compare(study, ComparisonPlan(("last_k",), (0.2,), "latency"))
    assert row.model is not None and row.match == "latency"
    assert row.model.flops_saved == pytest.approx(0.4, abs=0.04) and row.model.asked == pytest.approx(0.4, abs=0.04)


def test_tables_judge_each_row_against_ours(study: OpenStudy) -> None:
    rows = compare(study, ComparisonPlan(("last_k",), (0.3,), "flops"))
    [ours, last] = [one.model for one in rows]
    assert ours is not None and last is not None
    worse = replace(last, item_kl=tuple(kl + 0.5 for kl in ours.item_kl), kl=ours.kl + 0.5, item_right=(0,) * 6)
    ours = replace(ours, item_right=(1,) * 6, speedup_low=0.7, speedup_high=0.9)
    table_rows = [replace(rows[1], model=worse), replace(rows[0], model=ours)]
    [(title, table)] = methods_tables(table_rows)
    assert title == "30% less operations for a prefill"
    assert [row.cells[0].text for row in table.rows] == [OURS, "last_k"]
    kl, accuracy = table.rows[1].cells[4], table.rows[1].cells[6]
    assert kl.text == "worse" and kl.detail.startswith("+0.5000 [+0.5000")
    assert accuracy.text == "worse" and accuracy.detail.startswith("0 won, 6 lost")
    assert table.rows[0].cells[1].tone == "bad" and table.rows[0].cells[4].text == "–"


def test_rows_are_kept_as_they_were(study: OpenStudy) -> None:
    refused = Compared("a", "", "latency", 0.25, 1, "c", None, "why")
    study.store.comparisons.keep("one", refused)
    assert study.store.comparisons.of("one") == [refused]
    study.store.comparisons.keep("one", replace(refused, refused="another reason"))
    assert [one.refused for one in study.store.comparisons.of("one")] == ["another reason"]
    assert json.loads(json.dumps(asdict(refused)))["refused"] == "why"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"methods": ["shortgpt", "magic"]}, "There is no method 'magic': expected some of shortened_prompt"),
        ({"methods": []}, "--methods names nothing"),
        ({"budgets": ["0.2", "2"]}, "--budgets has '2': expected shares to save, above 0 and at most 0.9"),
        ({"budgets": ["nan"]}, "--budgets has 'nan'"),
        ({"budgets": []}, "--budgets names nothing"),
        ({"match": "size"}, "--match is 'size': expected latency or flops"),
        ({"seeds": 0}, "--seeds is 0"),
        ({"shapes": ["1x256", "8"]}, "--shapes has '8': expected rows and tokens of prefills, such as 1x256,8x2048"),
        ({"shapes": ["0x256"]}, "--shapes has '0x256'"),
        ({"shapes": ["2x-1"]}, "--shapes has '2x-1'"),
        ({"shapes": ["1x99999999"]}, "--shapes has '1x99999999'"),
        ({}, "was not measured yet: give --budgets"),
    ],
)
def test_wrong_plans_are_refused_before_anything_is_loaded(study: OpenStudy, asked: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"methods": None, "budgets": None, "match": "latency", "seeds": 3, **asked}
    with pytest.raises(ConfigError) as refused:
        comparison_plan(study.store, study.store.studies.get("one"), **given)
    assert said in str(refused.value)


def test_a_shape_is_timed_once_however_it_is_written(study: OpenStudy) -> None:
    record, shapes = study.store.studies.get("one"), listed("1x256, 8X2048, 1×256")
    plan = comparison_plan(study.store, record, None, [0.2], "flops", 3, shapes)
    assert plan.shapes == ((1, 256), (8, 2048)) and ComparisonPlan.stored(json.loads(json.dumps(asdict(plan)))) == plan


def test_what_is_listed_stands_between_commas() -> None:
    assert listed(" shortgpt,, laco ,") == ["shortgpt", "laco"] and listed(" , ") == []


def test_what_is_not_said_follows_from_the_selected_schedule(study: OpenStudy) -> None:
    def measured(variant: str, number: int | None, flops: float, speedup: float) -> Measurement:
        return Measurement(
            variant, number, (0.0,), 0.1, 2.0, None, None, None, 4, 5.0, 4.0, 6.0, 3, 1, 48, flops, speedup=speedup
        )

    record = study.store.studies.get("one")
    study.store.results.replace_measurements(
        "one", [measured("dense", None, 10.0, 1.0), measured("static", 1, 7.0, 1.25)]
    )
    plan = comparison_plan(study.store, record, None, None, "latency", 3)
    assert (plan.targets, plan.methods) == ((0.2,), method_names())
    assert comparison_plan(study.store, record, None, None, "flops", 3).targets == (0.3,)
    study.store.results.replace_measurements(
        "one", [measured("dense", None, 10.0, 1.0), measured("static", 1, 7.0, 0.9)]
    )
    with pytest.raises(ConfigError, match="measured to save -11% of the dense model's time"):
        comparison_plan(study.store, record, None, None, "latency", 3)
    study.store.studies.create("new", RunConfig.checked(**SMALL).model_dump(), OBJECTIVES)
    with pytest.raises(ConfigError, match="has no chosen schedule"):
        comparison_plan(study.store, study.store.studies.get("new"), None, None, "flops", 3)


def test_ours_is_the_best_of_those_that_save_enough(study: OpenStudy) -> None:
    model, ours = study.workload.model.skipping, OwnSchedules(study)
    assert ours.fit(model, (), Budget(0.2, 1, 48)).schedule == LATE
    assert ours.fit(model, (), Budget(0.0, 1, 48)).schedule == SparsitySchedule.uniform(0.0, 12)
    with pytest.raises(SearchError, match="No schedule of study 'one' saves"):
        ours.fit(model, (), Budget(0.7, 1, 48))


def test_the_command_compares_a_study_of_a_database_and_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'ftp-studies.db'}"
    with StudyStore(url) as store:
        store.studies.create("one", RunConfig.checked(**SMALL, device="cpu").model_dump(), OBJECTIVES)
        store.trials.append("one", trial(0, (0.3, 5.0), LATE))
        store.studies.choose_trial("one", 0)
    wrong = run_here(monkeypatch, capsys, tmp_path, "compare", "one", "--methods", "magic")
    assert wrong.code == 2 and "There is no method 'magic'" in wrong.err
    asked = ("compare", "one", "--methods", "last_k", "--budgets", "0.3", "--match", "flops", "--quiet")
    result = run_here(monkeypatch, capsys, tmp_path, *asked, "--json")
    assert result.code == 0, result.err
    ours, last = result.json()
    assert (ours["method"], last["method"], last["target"]) == (OURS, "last_k", 0.3)
    assert last["model"]["kl"] > 0 and ours["model"]["kl"] > 0 and len(last["model"]["item_kl"]) == 6
    # The same from Python, of what is known by now.
    known = search.compare("one", storage=url, methods=["last_k"], budgets=[0.3], match="flops", quiet=True)
    assert json.loads(json.dumps([asdict(one) for one in known])) == [ours, last]
    printed = run_here(monkeypatch, capsys, tmp_path, *asked, "--shapes", "2x16")
    assert "30% less operations for a prefill" in printed.out and "last_k" in printed.out
    assert "speed-up at others" in printed.out and "2 × 16" in printed.out
    with pytest.raises(ConfigError, match="trials is none of what compare takes: expected some of model"):
        search.compare("one", storage=url, trials=3)
