"""The evaluator in this process: parts of the set, failures, memory that runs out, and work that is shared."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from ftp_core.quality.quality import QualitySet
from ftp_core.routers import Router, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample
from search.errors import ConfigError, EvaluationError
from search.evaluators import Evaluation, Evaluator, Task
from search.evaluators.local import LocalEvaluator, is_out_of_memory
from search.problem.fidelities import part_ends
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.tiny_models import N_BLOCKS, fresh_tiny, tiny

ITEMS = [
    EncodedExample(tuple(range(1 + i, 8 + 2 * i)), ((9, 8, 7, 6)[: 1 + i % 4], (5, 4 + i)), 0, i % 2 == 0)
    for i in range(12)
]
SCHEDULES = [
    SparsitySchedule(values)
    for values in ([0.5, 0.3, 0.3], [0.5, 0.3, 0.6], [0.2, 0.3, 0.3], [0.5, 0.1, 0.6], [0.5, 0.3, 0.0])
]
HALF = SCHEDULES[0]


def test_figures_are_those_of_the_set() -> None:
    model = SkippingModel(tiny())
    quality = QualitySet(model, ITEMS).evaluate(HALF, StaticRouter(), choices=True)
    found = LocalEvaluator(model, ITEMS).evaluate(Task(HALF))
    assert found.metrics == {"kl": quality.kl, "perplexity": quality.perplexity} and found.error is None
    assert found.n_tokens == quality.n_tokens and found.seconds > 0
    assert (found.blocks_run, found.blocks_reused) == (N_BLOCKS * len(ITEMS), 0)
    with_choices = LocalEvaluator(model, ITEMS, choices=True).evaluate(Task(HALF))
    assert with_choices.metrics == {**found.metrics, "accuracy": quality.accuracy}


def test_items_without_choices_have_no_accuracy() -> None:
    plain = [item for item in ITEMS if not item.has_choices]
    evaluation = LocalEvaluator(SkippingModel(tiny()), plain, choices=True).evaluate(Task(HALF))
    assert evaluation.metrics.keys() == {"kl", "perplexity"}


@pytest.mark.parametrize("router", [StaticRouter(), random_router(1, window=3)])
def test_batches_of_fresh_items_are_parts_behind_the_set_with_the_kl_of_each_item(router: Router) -> None:
    model = SkippingModel(tiny())
    evaluator = LocalEvaluator(model, ITEMS[:4], (0.5, 1.0), router, fresh=[ITEMS[4:9], ITEMS[9:]], prefix_bytes=2**24)
    for part, examples in ((2, ITEMS[4:9]), (3, ITEMS[9:])):
        for _ in range(2):
            found = evaluator.evaluate(Task(HALF, part))
            alone = [LocalEvaluator(model, [one], router=router).evaluate(Task(HALF)) for one in examples]
            assert [item.kl for item in found.items] == [pytest.approx(one.metrics["kl"], rel=1e-3) for one in alone]
            assert [item.n_tokens for item in found.items] == [one.n_tokens for one in alone]
            assert found.metrics == {} and found.error is None and found.n_tokens == sum(one.n_tokens for one in alone)
    assert found.blocks_reused == (N_BLOCKS - 1) * 3 and not evaluator.evaluate(Task(HALF, 1)).items


@pytest.mark.parametrize("router", [StaticRouter(), random_router(1, window=3)])
def test_parts_of_the_set_joined_are_the_whole_set(router: Router) -> None:
    model = SkippingModel(tiny())
    evaluator = LocalEvaluator(model, ITEMS, (0.25, 0.5, 1.0), router)
    parts = [evaluator.evaluate(Task(HALF, part)) for part in range(3)]
    assert [part.n_tokens for part in parts] == [
        sum(len(item.continuations[0]) for item in ITEMS[start:end]) for start, end in [(0, 3), (3, 6), (6, 12)]
    ]
    joined, whole = parts[0].joined(parts[1]).joined(parts[2]), LocalEvaluator(model, ITEMS, router=router)
    expected = whole.evaluate(Task(HALF))
    assert joined.metrics == pytest.approx(expected.metrics, rel=1e-4)
    assert (joined.n_tokens, joined.blocks_run) == (expected.n_tokens, expected.blocks_run)


@given(n_items=st.integers(1, 200), shares=st.lists(st.floats(0.01, 0.99), unique=True, max_size=4))
def test_parts_cut_the_set_at_the_fidelities_or_are_refused(n_items: int, shares: list[float]) -> None:
    fidelities = [*sorted(shares), 1.0]
    try:
        ends = part_ends(n_items, fidelities)
    except ConfigError:
        rounded = [0, *(round(share * n_items) for share in fidelities)]
        assert len(set(rounded)) < len(rounded)
        return
    assert ends == [0, *(round(share * n_items) for share in fidelities)]
    assert ends == sorted(set(ends)) and ends[-1] == n_items


@pytest.mark.parametrize("fidelities", [(), (0.5,), (0.5, 0.25, 1.0), (0.5, 0.5, 1.0), (0.0, 1.0), (-0.5, 1.0), (2.0,)])
def test_fidelities_that_are_no_ascending_shares_are_refused(fidelities: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="ascending"):
        part_ends(100, fidelities)
    with pytest.raises(ConfigError, match="ascending"):
        part_ends(100, (math.nan, 1.0))


def test_a_part_without_items_is_refused() -> None:
    with pytest.raises(ConfigError, match="each part needs an item"):
        LocalEvaluator(SkippingModel(tiny()), ITEMS, (0.01, 1.0))
    with pytest.raises(ConfigError, match="0 items"):
        LocalEvaluator(SkippingModel(tiny()), [])


def test_results_come_in_the_order_of_their_tasks_until_there_are_none() -> None:
    evaluator: Evaluator = LocalEvaluator(SkippingModel(tiny()), ITEMS, (0.5, 1.0))
    tasks = [Task(schedule, part) for schedule in SCHEDULES for part in range(2)]
    for task in tasks:
        evaluator.submit(task)
    found: list[Evaluation] = []
    while results := evaluator.next_results(timeout_s=0.0):
        found += results
    assert [evaluation.task for evaluation in found] == tasks
    assert evaluator.capacity == 1
    assert {evaluation.worker for evaluation in found} == {"0"}
    begins = [evaluation.began_at for evaluation in found if evaluation.began_at is not None]
    assert len(begins) == len(found) and begins == sorted(begins)
    evaluator.submit(tasks[0])
    evaluator.close()
    assert evaluator.next_results() == []


@pytest.mark.parametrize("router", [StaticRouter(), random_router(1, window=3)])
@pytest.mark.parametrize("prefix_bytes", [20_000, 2**30])
def test_shared_work_is_counted_and_changes_no_figure(router: Router, prefix_bytes: int) -> None:
    model = SkippingModel(tiny())
    apart = LocalEvaluator(model, ITEMS, (0.25, 1.0), router, choices=True)
    sharing = LocalEvaluator(model, ITEMS, (0.25, 1.0), router, choices=True, prefix_bytes=prefix_bytes)
    reused = 0
    for schedule in SCHEDULES:
        for part, n_items in enumerate([3, 9]):
            task = Task(schedule, part)
            expected, found = apart.evaluate(task), sharing.evaluate(task)
            assert (found.metrics, found.n_tokens) == (expected.metrics, expected.n_tokens)
            assert found.blocks_run + found.blocks_reused == N_BLOCKS * n_items
            assert (expected.blocks_run, expected.blocks_reused) == (N_BLOCKS * n_items, 0)
            assert found.blocks_reused % n_items == 0
            reused += found.blocks_reused // n_items
    assert reused > 0
    if prefix_bytes == 2**30 and router.window == 0:
        assert reused == 2 * (0 + 2 + 0 + 1 + 2)


def test_what_goes_wrong_comes_back_as_the_task_s_error() -> None:
    model = fresh_tiny()
    evaluator = LocalEvaluator(SkippingModel(model), ITEMS, prefix_bytes=2**30)
    found = evaluator.evaluate(Task(SparsitySchedule([0.5, 0.5])))
    assert found.error is not None and found.error.startswith("ScheduleError: The schedule has 2")
    assert found.metrics == {} and found.task.schedule == SparsitySchedule([0.5, 0.5])

    def broken(*_: object) -> None:
        raise RuntimeError("a kernel broke")

    hook = model.model.layers[1].register_forward_pre_hook(broken)
    assert evaluator.evaluate(Task(HALF)).error == "RuntimeError: a kernel broke"
    hook.remove()
    assert evaluator.batch_size == 16
    model.model.layers[1].mlp.down_proj.weight.data.fill_(math.nan)
    found = evaluator.evaluate(Task(HALF))
    assert found.metrics == {} and found.error == "not finite: kl is nan, perplexity is nan"


def really_too_much() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def in_python() -> None:
    raise MemoryError


def limit_rows(model: PreTrainedModel, n_rows: int, run_out: Callable[[], None]) -> None:
    """Let memory run out where a batch has more rows."""

    def check(_module: object, _args: object, kwargs: dict[str, torch.Tensor]) -> None:
        if len(kwargs["input_ids"]) > n_rows:
            run_out()

    model.model.register_forward_pre_hook(check, with_kwargs=True)


@pytest.mark.parametrize("run_out", [really_too_much, on_a_gpu, in_python])
@pytest.mark.parametrize("prefix_bytes", [0, 2**30])
def test_batches_become_smaller_until_memory_suffices(run_out: Callable[[], None], prefix_bytes: int) -> None:
    model = fresh_tiny()
    evaluator = LocalEvaluator(SkippingModel(model), ITEMS, (0.25, 1.0), batch_size=8, prefix_bytes=prefix_bytes)
    for schedule in SCHEDULES[:2]:
        evaluator.evaluate(Task(schedule, 1))
    limit_rows(model, 3, run_out)
    found = [evaluator.evaluate(Task(schedule, 1)) for schedule in SCHEDULES[:2]]
    assert evaluator.batch_size == 2
    expected = LocalEvaluator(SkippingModel(tiny()), ITEMS, (0.25, 1.0), batch_size=2)
    assert [one.metrics for one in found] == [expected.evaluate(Task(one, 1)).metrics for one in SCHEDULES[:2]]
    assert [one.blocks_reused for one in found] == [0, 2 * 9 if prefix_bytes else 0]


def test_memory_may_run_out_while_the_dense_model_answers() -> None:
    model = fresh_tiny()
    limit_rows(model, 2, really_too_much)
    evaluator = LocalEvaluator(SkippingModel(model), ITEMS, batch_size=16)
    assert evaluator.batch_size == 2
    assert evaluator.evaluate(Task(HALF)).error is None


@pytest.mark.parametrize("prefix_bytes", [0, 2**30])
def test_memory_that_does_not_suffice_for_one_prompt_is_an_error(prefix_bytes: int) -> None:
    model = fresh_tiny()
    evaluator = LocalEvaluator(SkippingModel(model), ITEMS, prefix_bytes=prefix_bytes)
    limit_rows(model, 0, really_too_much)
    error = evaluator.evaluate(Task(HALF)).error
    assert error is not None and "memory" in error
    assert evaluator.batch_size == 1
    model.model._forward_pre_hooks.clear()
    assert evaluator.evaluate(Task(HALF)).error is None
    limit_rows(model, 0, really_too_much)
    with pytest.raises(EvaluationError, match="dense model"):
        LocalEvaluator(SkippingModel(model), ITEMS, prefix_bytes=prefix_bytes)


def test_shared_work_is_given_up_before_a_single_prompt_is() -> None:
    model = fresh_tiny()
    evaluator = LocalEvaluator(SkippingModel(model), ITEMS, batch_size=1, prefix_bytes=2**30)
    evaluator.evaluate(Task(SCHEDULES[0]))
    failures = [really_too_much]
    model.model.register_forward_pre_hook(lambda *_: failures.pop()() if failures else None)
    found = evaluator.evaluate(Task(SCHEDULES[1]))
    assert (found.error, found.blocks_reused, failures) == (None, 0, [])


def test_only_errors_of_memory_are_taken_for_such() -> None:
    with pytest.raises(RuntimeError) as caught:
        really_too_much()
    assert is_out_of_memory(caught.value) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("out of memory"))
