"""Public functions take what their users have: paths as text or paths, schedules as any sequence, devices as text."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dashboards import write_comparison, write_report
from ftp_core import (
    DynamicRouter,
    FTPForCausalLM,
    QualitySet,
    SkippingModel,
    SparsitySchedule,
    StaticRouter,
    calibrate_thresholds,
    distill,
    encode,
    load_model,
)
from ftp_core.baselines.shortgpt import blocks_removed_at
from ftp_core.cost import (
    AllocationTracker,
    FlopsCounter,
    Skipping,
    kv_bytes,
    measure,
    measure_latency,
    peak_activation_bytes,
    timing_batch,
)
from ftp_core.cost.break_even import BreakEven
from ftp_core.demo.examples import demo_examples
from ftp_core.loading.models import load_published, resolve
from ftp_core.sources.json_lines import load_jsonl
from ftp_core.training.distillation_config import DistillationConfig
from search.config.run_config import RunConfig
from search.problem.objectives import OBJECTIVES
from search.stages.export import export_study
from search.tuning.router_tuning import tune_router
from studies import StudyStore, front, hypervolume, load
from studies.records.study_facts import StudyFacts
from studies.records.trial_columns import columns_of
from tests.dashboards.records import DATA, TRIALS
from tests.ftp_core.cost.made_up_profiles import profile_of, shape_of
from tests.ftp_core.tiny_models import N_BLOCKS, fresh_tiny
from tests.studies.records import trial

MODULES = ("ftp_core", "ftp_core.cost", "ftp_core.routers", "search", "studies", "dashboards", "dashboards.figures")
# What README and docs name beside these.
FUNCTIONS = (load_jsonl, resolve, load_published, blocks_removed_at, BreakEven.schedule, export_study, tune_router)
VALUES = (0.0, 0.25, 0.5)
SCHEDULES: tuple[Sequence[float], ...] = (SparsitySchedule(VALUES), VALUES, list(VALUES), np.array(VALUES))
PROMPTS = timing_batch([[5, 6, 7, 8, 9, 10, 11, 12]], 2, 8)
PROFILE = profile_of(
    len(VALUES),
    shape_of(
        *(1, 8, (1, 4, 8), ((1.0, 3.0, 5.0),)),
        **{"fixed_ms": 0.5, "score_ms": 0.25, "listen_ms": ((0.1, 0.2, 0.3),)},
        **{"held": (2, 9), "decode_block_ms": ((0.1, 0.2),), "decode_fixed_ms": 0.7},
    ),
)


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every function, constructor and method that users of the packages call."""
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            one = getattr(module, name)
            called = f"{module.__name__}.{name}"
            if inspect.isfunction(one):
                yield called, one
            elif inspect.isclass(one) and one.__module__.startswith(MODULES):
                # Fields of records are what they say, and files that were written are given as paths.
                if not (is_dataclass(one) or issubclass(one, tuple)) and inspect.isfunction(one.__init__):
                    yield called, one.__init__
                for method, function in inspect.getmembers(one, inspect.isroutine):
                    is_ours = (getattr(function, "__module__", None) or "").startswith(MODULES)
                    if is_ours and not method.startswith("_") and hasattr(function, "__annotations__"):
                        yield f"{called}.{method}", function
    for one in FUNCTIONS:
        yield one.__qualname__, one


def narrow(annotation: str) -> bool:
    """Whether a parameter takes less than its users have."""
    words = set(re.findall(r"[\w.]+", annotation))
    is_narrow_path = "Path" in words and not {"str", "os.PathLike"} <= words
    is_narrow_schedule = "SparsitySchedule" in words and "Sequence[float]" not in annotation
    return is_narrow_path or is_narrow_schedule or ("torch.device" in words and "str" not in words)


def test_every_public_function_says_that_it_takes_them() -> None:
    found = {
        f"{called}({name}: {annotation})"
        for called, function in public()
        for name, annotation in getattr(function, "__annotations__", {}).items()
        if name != "return" and narrow(str(annotation))
    }
    assert found == set()
    assert narrow("Path | None") and narrow("Sequence[SparsitySchedule]") and not narrow("str | os.PathLike[str]")


def model() -> SkippingModel:
    return SkippingModel(fresh_tiny())


def examples() -> list[Any]:
    demo = load_model("demo")
    return encode(demo.tokenizer, demo_examples("calibration", 4, 0), demo.skipping.context)


def with_schedule_set(values: Sequence[float]) -> tuple[float, ...]:
    pruned = FTPForCausalLM.from_dense(fresh_tiny(), VALUES)
    pruned.schedule = values  # type: ignore[assignment]
    return tuple(pruned.schedule)


def thresholds_of(values: Sequence[float]) -> tuple[float, ...]:
    router = DynamicRouter()
    router.set_thresholds([0.0] * N_BLOCKS, values)
    router.check_schedule(values)
    return tuple(router.threshold_schedule or ())


def on_a_set(values: Sequence[float]) -> tuple[float, list[float]]:
    demo = load_model("demo")
    twelve = list(values) * 4
    of_kind = np.array(twelve) if isinstance(values, np.ndarray) else type(values)(twelve)  # type: ignore[call-arg]
    items = QualitySet(demo.skipping, examples())
    return items.evaluate(of_kind, StaticRouter()).kl, [one.kl for one in items.per_item(of_kind, StaticRouter())]


def prefilled(values: Sequence[float]) -> list[list[float]]:
    skipping = model()
    logits: list[list[float]] = skipping.next_logits(skipping.prefill(PROMPTS, values, StaticRouter())).tolist()
    return logits


def thresholds_that_meet(values: Sequence[float]) -> tuple[float, ...] | None:
    torch.manual_seed(0)
    return calibrate_thresholds(model(), DynamicRouter(), PROMPTS, values).thresholds


TAKES_A_SCHEDULE: dict[str, Callable[[Sequence[float]], object]] = {
    "SparsitySchedule": SparsitySchedule,
    "SparsitySchedule.of": SparsitySchedule.of,
    "from_dense": lambda values: tuple(FTPForCausalLM.from_dense(fresh_tiny(), values).schedule),
    "FTPForCausalLM.schedule": with_schedule_set,
    "SkippingModel.checked": lambda values: model().checked(values),
    "SkippingModel.prefill": prefilled,
    "QualitySet": on_a_set,
    "calibrate_thresholds": thresholds_that_meet,
    "set_thresholds": thresholds_of,
    "FlopsCounter.count": lambda values: FlopsCounter(model()).count(values, 2, 8),
    "kv_bytes": lambda values: kv_bytes(model(), values, 2, 8),
    "peak_activation_bytes": lambda values: peak_activation_bytes(model(), values, 2, 8),
    "blocks_removed_at": lambda values: blocks_removed_at(model(), values, 2, 8),
    "predict_ms": lambda values: [PROFILE.predict_ms(values, router=router) for router in ("static", "dynamic")],
    "decode_ms": lambda values: PROFILE.decode_ms(values),
    "worthwhile": lambda values: PROFILE.worthwhile(values, router="dynamic"),
    "BreakEven": lambda values: BreakEven(PROFILE).schedule(values, 1, 8, StaticRouter()),
    "measure": lambda values: measure(model(), PROMPTS, [Skipping("pruned", values)], repeats=2)[0].variant,
    "measure_latency": lambda values: len(measure_latency(model(), PROMPTS, [(values, StaticRouter())], repeats=2)),
}


@pytest.mark.parametrize("name", TAKES_A_SCHEDULE)
def test_a_schedule_is_any_sequence_of_shares(name: str) -> None:
    expected, *others = (TAKES_A_SCHEDULE[name](values) for values in SCHEDULES)
    assert others == [expected] * len(others)


@pytest.mark.parametrize("wrong", [("a", "b", "c"), [2.0, 0.0, 0.0], [0.5] * (N_BLOCKS + 1)], ids=str)
@pytest.mark.parametrize("name", ["from_dense", "SkippingModel.prefill", "FlopsCounter.count", "kv_bytes"])
def test_what_is_no_schedule_of_the_model_is_refused_as_such(name: str, wrong: Any) -> None:
    with pytest.raises(Exception, match=r"Sparsity .* of block|The schedule has 4 sparsities") as refused:
        TAKES_A_SCHEDULE[name](wrong)
    assert type(refused.value).__name__ == "ScheduleError"


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_text_or_a_path(kind: Callable[[Path], Any], tmp_path: Path) -> None:
    demo = load_model("demo")
    demo.skipping.model.save_pretrained(kind(tmp_path / "dense"))
    demo.tokenizer.save_pretrained(tmp_path / "dense")
    place = kind(tmp_path / "dense")
    assert resolve(place) == str(tmp_path / "dense") == load_model(place).source
    assert load_published(place)[0].config.num_hidden_layers == 12
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "a", "completion": " b"}) + "\n")
    assert len(load_jsonl(kind(tmp_path / "data.jsonl"))) == 1
    checkpoint = kind(tmp_path / "training.safetensors")
    config = DistillationConfig(steps=1, batch_size=2)
    distill(demo.skipping, examples(), [0.25] * 12, config, held_out=examples(), checkpoint=checkpoint)
    assert write_report(DATA, kind(tmp_path / "report")).html.is_file()
    about = {"study": "one", "created_at": "2026-01-01", "model": "demo", "target": None, "seed": 0, "selection": None}
    rows = [{**about, "facts": StudyFacts(), "measurements": DATA.measurements}]
    assert write_comparison(rows, kind(tmp_path / "compared")).html.is_file()
    with StudyStore(f"sqlite:///{tmp_path / 'one.db'}") as store:
        store.studies.create("one", RunConfig(model=str(tmp_path / "dense"), workers=1).model_dump(), OBJECTIVES)
        store.trials.append("one", trial(0, (0.5, 2.0), (0.25,) * 12))
        store.studies.choose_trial("one", 0)
        store.studies.update_facts("one", StudyFacts(model_fingerprint=demo.fingerprint()))
        export_study(store, "one", kind(tmp_path / "pruned"), include_base=False)
    pruned = FTPForCausalLM.from_pretrained(kind(tmp_path / "pruned"))
    pruned.save_pretrained(kind(tmp_path / "again"))
    assert (tmp_path / "again/model.safetensors").is_file()


@pytest.mark.parametrize("kind", [list, tuple])
def test_trials_and_references_are_any_sequence(kind: Callable[[Sequence[Any]], Sequence[Any]], tmp_path: Path) -> None:
    points = front(kind(TRIALS))
    assert hypervolume(kind(points), kind((3.0, 250.0))) == hypervolume(points, (3.0, 250.0))
    assert hypervolume(points, np.array([3.0, 250.0])) == hypervolume(points, (3.0, 250.0))
    assert len(columns_of(kind(TRIALS), 2)) == len(TRIALS)
    url = f"sqlite:///{tmp_path / 'one.db'}"
    with StudyStore(url) as store:
        store.studies.create("one", RunConfig(workers=1).model_dump(), list(OBJECTIVES))
        store.trials.append("one", trial(0, kind((0.5, 2.0)), kind((0.0, 0.5))))  # type: ignore[arg-type]
        assert store.trials.of("one")[0].schedule == (0.0, 0.5) and store.trials.of("one")[0].values == (0.5, 2.0)
        assert load("one", store).hypervolume(kind((1.0, 3.0))) == pytest.approx(0.5)


def test_a_device_is_text_or_a_device() -> None:
    for device in ("cpu", torch.device("cpu")):
        with AllocationTracker(device) as tracker:
            torch.zeros(1000)
        assert tracker.peak_bytes >= 4000
