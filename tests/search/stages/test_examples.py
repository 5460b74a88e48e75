"""Examples show what the models really do on single items: which tokens run, and what is answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ftp_core.demo.examples import demo_examples
from ftp_core.loading.models import LoadedModel, load_model
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import Router, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.text.data import Example
from ftp_core.text.encoding import EncodedExample, encode, prompt_batch
from search.errors import SearchError
from search.stages.completions import greedy_answers
from search.stages.examples import N_STEPS, _natural, collect_examples
from studies import StudyStore
from studies.records.records import ReportExamples
from tests.ftp_core.made_up_routers import random_router

N_BLOCKS = 12
DENSE = SparsitySchedule.uniform(0.0, N_BLOCKS)
PRUNED = SparsitySchedule([0.0] * 4 + [0.6] * 8)
STATIC = StaticRouter()
VARIANTS: dict[str, tuple[SparsitySchedule, Router]] = {
    "dense": (DENSE, STATIC),
    "uniform": (SparsitySchedule.uniform(0.4, N_BLOCKS), STATIC),
    "refined": (PRUNED, random_router(3, window=8)),
}


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("demo")


def encoded(loaded: LoadedModel, examples: list[Example]) -> list[EncodedExample]:
    return encode(loaded.tokenizer, examples, loaded.skipping.context)


def collect(
    loaded: LoadedModel,
    examples: list[EncodedExample],
    selected: str = "refined",
    variants: dict[str, tuple[SparsitySchedule, Router]] = VARIANTS,
    on_step: Callable[[], None] = lambda: None,
) -> ReportExamples:
    """With the quality of every variant on each example."""
    quality = QualitySet(loaded.skipping, examples)
    items = {name: quality.per_item(*variant) for name, variant in variants.items()}
    return collect_examples(loaded.skipping, loaded.tokenizer, examples, variants, items, selected, on_step)


@pytest.fixture(scope="module")
def examples(loaded: LoadedModel) -> list[EncodedExample]:
    return encoded(loaded, demo_examples("test", 30))


@pytest.fixture(scope="module")
def collected(loaded: LoadedModel, examples: list[EncodedExample]) -> ReportExamples:
    return collect(loaded, examples)


def test_prompts_are_whole_and_show_how_many_blocks_each_token_ran(
    loaded: LoadedModel, examples: list[EncodedExample], collected: ReportExamples
) -> None:
    prompts = {example.prompt: one for example, one in zip(demo_examples("test", 30), examples, strict=True)}
    assert 3 <= len(collected.prompts) <= 5
    lengths, groups = [], set()
    for shown in collected.prompts:
        example = prompts["".join(shown.tokens)]
        lengths.append(len(example.prompt))
        groups.add(example.group)
        kept = loaded.skipping.prefill(prompt_batch([example]), *VARIANTS["refined"]).kept
        runs = [sum(bool(block[0, place]) for block in kept) for place in range(len(example.prompt))]
        # The first token begins every text, and stands for none of it.
        assert list(shown.blocks_run) == runs[1:]
        assert shown.n_blocks == N_BLOCKS and max(runs) > min(runs) >= 4
        assert shown.expected == loaded.tokenizer.decode(example.continuations[example.answer]).strip()
    assert len(groups) == len(set(lengths)) == len(collected.prompts)


def test_choices_of_both_models_are_judged(
    loaded: LoadedModel, examples: list[EncodedExample], collected: ReportExamples
) -> None:
    quality = QualitySet(loaded.skipping, examples)
    dense, pruned = (quality.per_item(*VARIANTS[name]) for name in ("dense", "refined"))
    prompts = [example.prompt for example in demo_examples("test", 30)]
    for one in collected.prompts:
        place = prompts.index("".join(one.tokens))
        assert (one.dense_right, one.pruned_right) == (dense[place].right, pruned[place].right)
        assert one.dense_right is not None and one.pruned_right is not None


def test_half_a_block_counts_half(loaded: LoadedModel, examples: list[EncodedExample]) -> None:
    halves = SparsitySchedule.of_halves([0.0] * N_BLOCKS, [0.5] * N_BLOCKS)
    variants = {**VARIANTS, "refined": (halves, STATIC)}
    for shown in collect(loaded, examples[:2], variants=variants).prompts:
        # By the static router the same half of the tokens runs no MLP.
        assert set(shown.blocks_run) == {N_BLOCKS // 2, N_BLOCKS}


def test_a_character_of_several_tokens_runs_as_many_blocks_as_these_do_on_average(loaded: LoadedModel) -> None:
    (item,) = encoded(loaded, [Example("Zoë paid 3 € to Anna. 日本", " é")])
    shown = collect(loaded, [item]).prompts
    (prompt,) = shown
    assert "".join(prompt.tokens) == "Zoë paid 3 € to Anna. 日本"
    assert {"ë", "€", "日", "本"} <= set(prompt.tokens)
    kept = loaded.skipping.prefill(prompt_batch([item]), *VARIANTS["refined"]).kept
    runs = [sum(bool(block[0, place]) for block in kept) for place in range(len(item.prompt))]
    assert prompt.blocks_run[-2:] == (round(sum(runs[-6:-3]) / 3), round(sum(runs[-3:]) / 3))
    assert prompt.expected == "é"


def test_accuracy_by_group_is_that_of_its_items_in_natural_order(
    loaded: LoadedModel, examples: list[EncodedExample], collected: ReportExamples
) -> None:
    names = [group.group for group in collected.groups]
    assert names == sorted(set(names), key=lambda name: int(name.split()[1].split("-")[0]))
    assert sum(group.n_items for group in collected.groups) == len(examples)
    for group in collected.groups:
        own = QualitySet(loaded.skipping, [one for one in examples if one.group == group.group])
        assert list(group.accuracy) == list(group.interval) == list(VARIANTS)
        for name, (schedule, router) in VARIANTS.items():
            quality = own.evaluate(schedule, router, choices=True)
            assert group.accuracy[name] == pytest.approx(quality.accuracy)
            assert group.interval[name] == quality.accuracy_interval
            assert group.n_items == quality.n_choice_items


def test_groups_come_in_natural_order() -> None:
    ordered = ["", "a", "distance 0-2", "distance 3-5", "distance 3-10", "distance 10-12", "distance 010-13", "x"]
    turned_round = ordered[::-1]
    assert sorted(turned_round, key=_natural) == ordered
    assert sorted(["9" * 5000, "x", "12", "7"], key=_natural) == ["7", "12", "9" * 5000, "x"]


def test_disagreements_are_those_answered_differently_and_then_the_highest_kl(
    loaded: LoadedModel, examples: list[EncodedExample], collected: ReportExamples
) -> None:
    quality = QualitySet(loaded.skipping, examples)
    dense, pruned = (quality.per_item(*VARIANTS[name]) for name in ("dense", "refined"))
    different = [one.choice != other.choice for one, other in zip(dense, pruned, strict=True)]
    order = sorted(range(len(examples)), key=lambda place: (different[place], pruned[place].kl), reverse=True)[:10]
    texts = [example.prompt for example in demo_examples("test", 30)]
    assert [one.prompt for one in collected.disagreements] == [texts[place] for place in order]
    for shown, place in zip(collected.disagreements, order, strict=True):
        example = examples[place]
        said = [loaded.tokenizer.decode(choice).strip() for choice in example.continuations]
        assert (shown.kl, shown.group) == (pruned[place].kl, example.group)
        assert shown.expected == said[example.answer]
        assert (shown.dense, shown.pruned) == (said[dense[place].choice or 0], said[pruned[place].choice or 0])
    assert collected.n_items == 30 and collected.n_disagreements == sum(different) > 0
    pairs = [(bool(one.right), bool(other.right)) for one, other in zip(dense, pruned, strict=True)]
    assert (collected.n_lost, collected.n_won) == (pairs.count((True, False)), pairs.count((False, True)))
    assert collected.n_lost > collected.n_won


def test_kl_is_compared_item_by_item(
    loaded: LoadedModel, examples: list[EncodedExample], collected: ReportExamples
) -> None:
    assert set(collected.kl_ratios) == {"uniform"}
    low, high = collected.kl_ratios["uniform"]
    quality = QualitySet(loaded.skipping, examples)
    whole = {name: quality.evaluate(*VARIANTS[name]).kl for name in ("refined", "uniform")}
    assert low < whole["refined"] / whole["uniform"] < high
    # The same by another way: items are drawn, and both variants see the same.
    rng, drawn = np.random.default_rng(1), []
    sums = {
        name: np.array(
            [
                one.kl * len(example.continuations[example.answer])
                for one, example in zip(quality.per_item(*VARIANTS[name]), examples, strict=True)
            ]
        )
        for name in whole
    }
    for _ in range(4000):
        items = rng.integers(len(examples), size=len(examples))
        drawn.append(sums["refined"][items].sum() / sums["uniform"][items].sum())
    assert (low, high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist(), rel=0.1)


def test_the_dense_model_does_not_disagree_with_itself(loaded: LoadedModel, examples: list[EncodedExample]) -> None:
    steps: list[None] = []
    found = collect(loaded, examples[:9], "dense", on_step=lambda: steps.append(None))
    assert (found.disagreements, found.n_disagreements, found.n_lost, found.n_won, found.n_items) == ((), 0, 0, 0, 9)
    assert all(run == N_BLOCKS for prompt in found.prompts for run in prompt.blocks_run)
    assert len(steps) == N_STEPS


def test_items_without_choices_are_compared_by_their_first_word_and_shown_as_greedy_text(loaded: LoadedModel) -> None:
    plain = encoded(loaded, [Example(one.prompt, one.completion, group="any") for one in demo_examples("test", 12)])
    steps: list[None] = []
    found = collect(loaded, plain, on_step=lambda: steps.append(None))
    assert len(steps) == N_STEPS
    dense, pruned = (
        greedy_answers(loaded.skipping, loaded.tokenizer, plain, *VARIANTS[name]) for name in ("dense", "refined")
    )
    first = [(one.split()[0].strip("."), other.split()[0].strip(".")) for one, other in zip(dense, pruned, strict=True)]
    assert found.n_disagreements == sum(one != other for one, other in first) > 0
    assert (found.n_items, found.groups, len(found.prompts)) == (12, (), 4)
    said = dict(zip((one.prompt for one in demo_examples("test", 12)), zip(dense, pruned, strict=True), strict=True))
    for shown in found.disagreements:
        assert (shown.dense, shown.pruned) == said[shown.prompt]
    for prompt in found.prompts:
        assert (prompt.dense, prompt.pruned) == said["".join(prompt.tokens)]
        assert prompt.dense_right is None and prompt.pruned_right is None


def test_where_there_are_choices_items_without_are_not_counted(
    loaded: LoadedModel, examples: list[EncodedExample], collected: ReportExamples
) -> None:
    plain = encoded(loaded, [Example("Anna likes", " music", group="text")])
    found = collect(loaded, [*plain, *examples])
    assert found.n_items == 30 and found.n_disagreements == collected.n_disagreements
    assert [group.group for group in found.groups] == [group.group for group in collected.groups]


def test_long_prompts_are_shown_only_if_there_are_no_others(
    loaded: LoadedModel, examples: list[EncodedExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = sorted(len(example.prompt) for example in examples)
    few = {"dense": VARIANTS["dense"]}
    for longest, expected in [(lengths[9], lengths[9]), (lengths[1], lengths[3])]:
        monkeypatch.setattr("search.stages.examples._LONGEST_SHOWN", longest)
        ungrouped = [replace(example, group=None) for example in examples]
        shown = collect(loaded, ungrouped, "dense", few).prompts
        assert len(shown) == 4 and max(len(prompt.tokens) for prompt in shown) == expected - 1


def test_examples_come_back_from_the_database_as_they_were(collected: ReportExamples) -> None:
    with StudyStore("sqlite://") as store:
        store.studies.create("one", {}, ("kl", "flops"))
        store.results.keep_examples("one", collected)
        assert store.results.examples("one") == collected


def test_missing_variants_are_errors(loaded: LoadedModel, examples: list[EncodedExample]) -> None:
    with pytest.raises(SearchError, match="There is no variant 'static', only 'dense', 'uniform', 'refined'"):
        collect(loaded, examples, "static")
    with pytest.raises(SearchError, match="There is no variant 'dense', only 'refined'"):
        collect(loaded, examples, variants={"refined": VARIANTS["refined"]})
