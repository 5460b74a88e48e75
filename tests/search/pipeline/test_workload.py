"""Maps that stand in for what tokens skip are fitted once: a study that goes on has those that it keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console

from ftp_core.skipping.fitted_keys import fitted_keys_of, give_fitted_keys
from ftp_core.skipping.substitutes import substitutes_of
from search.config.run_config import RunConfig
from search.inputs import substitutes
from search.inputs.data import load_workload
from search.pipeline.workload import fit_keys_of, give_substitutes_of
from search.problem.objectives import OBJECTIVES
from search.progress.progress_view import ProgressView
from search.stages.open_study import OpenStudy
from studies import StudyStore

HALVES: dict[str, Any] = {
    **{"calibration_items": 4, "validation_items": 4, "test_items": 4, "search_items": 4, "workers": 1},
    **{"target_flops_saved": 0.2, "substitute": 2},
}


def opened(store: StudyStore, config: RunConfig) -> list[torch.Tensor]:
    """What stands in for what tokens skip, where a study is opened with a model of its own."""
    workload = load_workload(config.model, config.data, config.seed, config.sizes)
    with store.runs.lease("one") as lease:
        give_substitutes_of(OpenStudy(store, "one", lease, config, workload, ProgressView(Console(quiet=True))))
    maps = substitutes_of(workload.model.skipping.model)
    return [] if maps is None else list(maps.parameters())


def test_a_study_that_goes_on_has_the_maps_that_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig.checked(**HALVES)
    with StudyStore("sqlite://") as store:
        store.studies.create("one", config.model_dump(), OBJECTIVES)
        first = opened(store, config)
        assert first and any(bool(one.any()) for one in first)
        monkeypatch.setattr(substitutes, "fit_substitutes", lambda *_: pytest.fail("fitted again"))
        again = opened(store, config)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_a_study_fits_keys_to_the_prompts_that_it_keeps() -> None:
    config = RunConfig.checked(**HALVES | {"search_items": 2, "keys": "fitted"})
    workload = load_workload(config.model, config.data, config.seed, config.sizes)
    model, items = workload.model.skipping, workload.splits["calibration"]
    plain = workload.model.skipping_fingerprint()
    with StudyStore("sqlite://") as store:
        store.studies.create("one", config.model_dump(), OBJECTIVES)
        with store.runs.lease("one") as lease:
            study = OpenStudy(store, "one", lease, config, workload, ProgressView(Console(quiet=True)))
            fit_keys_of(study)
            kept = store.fitted_prompts.of("one")
            # Those that schedules are evaluated on come last.
            assert kept == [one.prompt for one in (*items[2:], *items[:2])]
            found = fitted_keys_of(model.model)
            assert found is not None and found.prompts == tuple(kept)
            store.fitted_prompts.keep("one", kept[:1])
            fit_keys_of(study)
            again = fitted_keys_of(model.model)
            assert again is not None and again.prompts == tuple(kept[:1])
            # What results rest on: an evaluation with other keys is another one.
            give_fitted_keys(model.model, found)
            one = workload.model.skipping_fingerprint()
            give_fitted_keys(model.model, again)
            assert workload.model.skipping_fingerprint() != one != plain
            give_fitted_keys(model.model, None)
            assert workload.model.skipping_fingerprint() == plain
            fit_keys_of(replace(study, config=config.model_copy(update={"keys": "own"})))
            assert fitted_keys_of(model.model) is None


def test_a_study_of_whole_blocks_has_none() -> None:
    config = RunConfig.checked(**HALVES | {"target_flops_saved": None, "substitute": "auto", "cost": "flops"})
    with StudyStore("sqlite://") as store:
        store.studies.create("one", config.model_dump(), OBJECTIVES)
        assert opened(store, config) == [] and store.substitutes.of("one") == []
