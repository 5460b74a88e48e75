"""What cannot be searched is refused before there is a study, with what to do instead."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from ftp_core.errors import DataError, ModelError
from ftp_core.loading.models import load_model
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from search.config.run_config import RunConfig
from search.errors import ConfigError
from search.inputs.data import Workload, load_workload
from search.pipeline.preflight import _check_keys, check_search
from search.problem.objectives import OBJECTIVES, Objectives
from studies import StudyNotFoundError, StudyStore
from studies.records.study_facts import StudyFacts
from tests.ftp_core.baselines.test_swiftkv_distilled import Opaque
from tests.ftp_core.tiny_models import tiny
from tests.search.synthetic import metrics_of

SMALL = {"calibration_items": 8, "validation_items": 2, "test_items": 2, "search_items": 8, "workers": 1}


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_workload("demo", "demo", 0, RunConfig(**SMALL).sizes)  # type: ignore[arg-type]


def test_flops_that_no_schedule_saves_are_refused_with_the_most_that_can_be(
    workload: Workload, store: StudyStore
) -> None:
    asked = {"target_flops_saved": 0.9, "dense_blocks": tuple(range(workload.model.skipping.n_blocks - 1))}
    with pytest.raises(
        ConfigError, match=r"0.9 of the FLOPs saved cannot be reached: .* at most 0\.\d{3} of the dense"
    ):
        check_search(RunConfig(**SMALL, **asked), workload, store)  # type: ignore[arg-type]
    check_search(RunConfig(**SMALL, target_flops_saved=0.2), workload, store)  # type: ignore[arg-type]


@pytest.fixture
def store(workload: Workload) -> Iterator[StudyStore]:
    with StudyStore("sqlite://") as store:
        store.studies.create("other", RunConfig(**SMALL).model_dump(), OBJECTIVES)  # type: ignore[arg-type]
        fingerprints = {
            "model_fingerprint": workload.model.fingerprint(),
            "data_fingerprint": workload.data_fingerprint,
        }
        store.studies.update_facts("other", StudyFacts(**fingerprints))
        yield store


def config(**options: object) -> RunConfig:
    return RunConfig.checked(**{**SMALL, **options})


def test_accuracy_can_be_demanded_of_multiple_choice_alone(workload: Workload, store: StudyStore) -> None:
    check_search(config(min_accuracy=0.9), workload, store)
    plain = [replace(item, has_choices=False) for item in workload.splits["calibration"]]
    without = replace(workload, splits={**workload.splits, "calibration": plain})
    check_search(config(), without, store)
    with pytest.raises(ConfigError, match="--min-accuracy is 0.9, but there is no multiple-choice item"):
        check_search(config(min_accuracy=0.9), without, store)


def test_a_part_without_multiple_choice_breaks_no_accuracy() -> None:
    schedule = SparsitySchedule((0.5, 0.5))
    judge = Objectives(lambda _: 7.0, min_accuracy=0.9)
    metrics = metrics_of(schedule)
    assert judge(schedule, metrics) == ((metrics["kl"], 7.0), 0.0)
    assert judge(schedule, {**metrics, "accuracy": 0.95})[1] == 0.0
    assert judge(schedule, {**metrics, "accuracy": 0.5})[1] == pytest.approx(0.4)


def test_data_that_is_too_short_for_the_fidelities_is_refused(workload: Workload, store: StudyStore) -> None:
    few = replace(workload, splits={**workload.splits, "calibration": workload.splits["calibration"][:2]})
    check_search(config(fidelities=(0.25, 1.0)), workload, store)
    with pytest.raises(ConfigError, match="A search set of 2 items cannot be cut at 0.25, 1"):
        check_search(config(fidelities=(0.25, 1.0)), few, store)


def test_only_a_study_of_the_same_model_data_and_items_is_started_from(workload: Workload, store: StudyStore) -> None:
    check_search(config(warm_start="other"), workload, store)
    # It may trade KL against something else: costs are computed anew.
    check_search(config(warm_start="other", cost="kv_bytes"), workload, store)
    with pytest.raises(StudyNotFoundError, match="nobody"):
        check_search(config(warm_start="nobody"), workload, store)
    with pytest.raises(ConfigError, match="its data is not that of the new study"):
        check_search(config(warm_start="other"), replace(workload, data_fingerprint="another"), store)
    with pytest.raises(ConfigError, match="evaluates on 8 items, and not on 4"):
        check_search(config(warm_start="other", search_items=4), workload, store)
    store.studies.update_facts("other", StudyFacts(model_fingerprint="another"))
    with pytest.raises(ConfigError, match="its model is not that of the new study"):
        check_search(config(warm_start="other"), workload, store)


def test_a_study_in_another_precision_is_named_with_what_to_do(workload: Workload, store: StudyStore) -> None:
    store.studies.set_config("other", config(dtype="float32").model_dump())
    check_search(config(warm_start="other"), workload, store)
    half = replace(workload, model=load_model("demo", dtype="bfloat16"))
    with pytest.raises(
        ConfigError,
        match="'other', whose model computes in float32, and that of the new study in bfloat16: results of two "
        "precisions do not compare. Give --dtype float32, or name a study in bfloat16",
    ):
        check_search(config(warm_start="other"), half, store)
    # What began before its precision was known is told apart by its weights.
    store.studies.set_config("other", config().model_dump())
    with pytest.raises(ConfigError, match="its model is not that of the new study"):
        check_search(config(warm_start="other"), half, store)


def test_a_model_whose_operations_cannot_be_counted_is_refused(workload: Workload, store: StudyStore) -> None:
    strange = load_model("demo")
    strange.skipping.blocks[3].register_parameter("stack", torch.nn.Parameter(torch.zeros(2, 2, 2)))
    with pytest.raises(ModelError, match="stack has shape"):
        check_search(config(), replace(workload, model=strange), store)


def test_studies_with_other_substitutes_do_not_begin_another(workload: Workload, store: StudyStore) -> None:
    with pytest.raises(ConfigError, match="'other', where substitutes of skipped halves have rank 0, and not 32"):
        check_search(config(warm_start="other", kv="keep"), workload, store)
    check_search(config(warm_start="other", kv="keep", substitute=0), workload, store)


def test_studies_with_other_keys_do_not_begin_another(workload: Workload, store: StudyStore) -> None:
    with pytest.raises(ConfigError, match="'other', where keys of skipped tokens are own, and not fitted"):
        check_search(config(warm_start="other", kv="keep", substitute=0, keys="fitted"), workload, store)


def test_keys_that_cannot_be_fitted_are_refused_with_the_way_out(workload: Workload, store: StudyStore) -> None:
    short = [replace(one, prompt=one.prompt[:1]) for one in workload.splits["calibration"]]
    of_one_token = replace(workload, splits={**workload.splits, "calibration": short})
    with pytest.raises(DataError, match="nothing could skip: give longer prompts, or --keys own"):
        check_search(config(kv="keep", substitute=0, keys="fitted"), of_one_token, store)
    check_search(config(kv="keep", substitute=0), of_one_token, store)
    quantised = copy.deepcopy(workload.model.skipping)
    for attention in (block.self_attn for block in quantised.blocks):
        attention.k_proj, attention.v_proj = Opaque(attention.k_proj), Opaque(attention.v_proj)
    hidden = replace(workload, model=replace(workload.model, skipping=quantised))
    with pytest.raises(ModelError, match=r"quantised or not in memory: .* \(--keys own\)"):
        _check_keys(config(kv="keep"), hidden)


def test_what_cannot_skip_by_halves_or_be_substituted_is_refused(workload: Workload, store: StudyStore) -> None:
    whole_only = replace(workload, model=replace(workload.model, skipping=SkippingModel(tiny("gemma4_text"))))
    for asked in ({"kv": "keep"}, {"kv": "keep", "substitute": 0}, {"granularity": "half", "substitute": 0}):
        with pytest.raises(ModelError, match="gemma4_text models have parts beside attention and MLP"):
            check_search(config(**asked), whole_only, store)
    short = [replace(one, prompt=one.prompt[:1]) for one in workload.splits["calibration"]]
    of_one_token = replace(workload, splits={**workload.splits, "calibration": short})
    with pytest.raises(DataError, match="No prompt has a second token"):
        check_search(config(kv="keep"), of_one_token, store)
    check_search(config(kv="keep", substitute=0), of_one_token, store)
