"""Keys and values of skipped tokens: other projections in every family, fitted to each schedule."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ftp_core.errors import ModelError
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping import fitted_keys
from ftp_core.skipping.fitted_keys import (
    FittedKeys,
    fitted_keys_of,
    give_fitted_keys,
    keys_fitted,
    n_batches,
    prompts_to_fit,
)
from ftp_core.skipping.kept_projections import KeptProjections, give_kept_projections, kept_projections_of
from ftp_core.skipping.prefixes import PrefixStore
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.skipping.substitutes import Substitutes, give_substitutes
from ftp_core.text.encoding import EncodedExample
from tests.ftp_core.baselines.slow_models import deep_base
from tests.ftp_core.skipping.test_halves import ABLE, check, rows, same_lengths, schedules
from tests.ftp_core.slow_reference import slow_logits
from tests.ftp_core.tiny_models import (
    CONFIGS,
    N_BLOCKS,
    VOCABULARY,
    crossed,
    random_projections,
    tiny,
    with_projections,
)

IDS = torch.arange(3, 43).view(2, 20)
SCHEDULE = SparsitySchedule.of_halves([0.5, 0.3, 0.0], [0.3, 0.6, 0.5], True)


def prompts(n: int = 12) -> list[tuple[int, ...]]:
    draws = torch.Generator().manual_seed(0)
    return [tuple(torch.randint(3, VOCABULARY, (9 + 5 * (i % 4),), generator=draws).tolist()) for i in range(n)]


@cache
def deep(family: str = "llama") -> SkippingModel:
    return SkippingModel(deep_base(family, n_blocks=4))


@pytest.mark.parametrize(("name", "kind"), crossed(ABLE, ["static", "dynamic", "random"]))
@settings(max_examples=6)
@given(texts=rows | same_lengths, schedule=schedules)
def test_other_projections_serve_skipped_tokens_as_in_a_masked_full_computation(
    name: str, kind: str, texts: list[tuple[list[int], list[int]]], schedule: SparsitySchedule
) -> None:
    check(with_projections(name), kind, texts, schedule)


def slow_fits(
    model: SkippingModel, texts: Sequence[tuple[int, ...]], schedule: SparsitySchedule, ridges: Sequence[float]
) -> dict[int, dict[str, Tensor]]:
    """Weights of fitted projections `[K, D]`, by block and name; least squares over tokens gathered one by one."""
    base = copy.deepcopy(model.model)
    fits: dict[int, dict[str, nn.Module]] = {}
    for index, entry in enumerate(schedule.blocks):
        if not (entry.keeps_kv and entry.attention > 0):
            continue
        attention = model.family.blocks_of(base)[index].get_submodule(model.family.halves[0])
        names = [name for name, one in attention.named_children() if name in ("k_proj", "v_proj", "c_attn")]
        fits[index] = {}
        for name in names:
            seen: list[tuple[Tensor, Tensor]] = []
            part = attention.get_submodule(name)
            handle = part.register_forward_hook(lambda _, args, made, seen=seen: seen.append((args[0][0], made[0])))
            found: tuple[list[tuple[Tensor, Tensor]], ...] = ([], [])
            for place, text in enumerate(texts):
                give_kept_projections(base, None)
                base(torch.tensor([text]), use_cache=False)
                (_, dense), *_ = seen
                seen.clear()
                give_kept_projections(base, KeptProjections({i: of for i, of in fits.items() if i < index}))
                _, kept = slow_logits(base, list(text), [3], schedule, StaticRouter(), model.keep_first)
                (read, made), *_ = seen
                seen.clear()
                skips = (~kept[index]).nonzero()[:, 0]
                found[place % 5 == 4].append((read[skips], dense[skips] - made[skips]))
            handle.remove()
            fitted, aside = ([torch.cat(of) for of in zip(*half, strict=True)] for half in found)

            def solved(read: Tensor, missed: Tensor, ridge: float) -> Tensor:
                weight = (ridge * read.square().mean() * len(read)).sqrt() * torch.eye(read.shape[1])
                stacked = torch.cat([read, weight]), torch.cat([missed, torch.zeros(len(weight), missed.shape[1])])
                return torch.linalg.lstsq(*stacked).solution

            errors = {ridge: (aside[1] - aside[0] @ solved(*fitted, ridge)).square().sum() for ridge in ridges}
            best = min(errors, key=lambda ridge: errors[ridge])
            if errors[best] < aside[1].square().sum():
                change = solved(*(torch.cat(of) for of in zip(fitted, aside, strict=True)), best)
                fits[index][name] = copy.deepcopy(part)
                with torch.no_grad():
                    fits[index][name].weight.add_(change if name == "c_attn" else change.T)
    give_kept_projections(base, None)
    return {index: {name: part.weight for name, part in of.items()} for index, of in fits.items()}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@torch.no_grad()
def test_projections_are_those_of_a_regression_over_the_tokens_that_skip(family: str) -> None:
    model = deep(family).protecting(2)
    schedule = SparsitySchedule.of_halves([0.0, 0.6, 0.4, 0.8], [0.0, 0.6, 0.7, 0.3], [False, True, False, True])
    found = FittedKeys(model, prompts()).of(model, schedule)
    expected = slow_fits(model, prompts(), schedule, fitted_keys._RIDGES)
    assert found is not None and found.fitted_to == schedule
    assert {index: set(found.of(index)) for index in expected} == {i: set(of) for i, of in expected.items()}
    assert any(expected.values())
    for index, parts in expected.items():
        for name, weight in parts.items():
            torch.testing.assert_close(found.of(index)[name].weight, weight, atol=2e-4, rtol=2e-3)


def late(share: float, start: int = 1) -> SparsitySchedule:
    shares = [share if index >= start else 0.0 for index in range(4)]
    return SparsitySchedule.of_halves(shares, shares, True)


def weights(projections: KeptProjections | None) -> dict[str, Tensor]:
    assert projections is not None
    return projections.state_dict()


def test_what_a_schedule_gets_does_not_hang_on_those_asked_for_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model, keys = deep(), FittedKeys(deep(), prompts())
    asked = [late(0.5), late(0.5, 2), SparsitySchedule.of_halves([0, 0.5, 0.7, 0], [0, 0.5, 0, 0.4], True), late(0.8)]
    for shared_bytes in (2**27, 0):
        monkeypatch.setattr(fitted_keys, "_SHARED_BYTES", shared_bytes)
        for schedule in (*asked, asked[1], asked[0]):
            alone = FittedKeys(model, prompts()).of(model, schedule)
            assert alone is not None and alone.names
            together = keys.of(model, schedule)
            assert together is not None and together.names == alone.names
            torch.testing.assert_close(weights(together), weights(alone), atol=0, rtol=0)
    # Nothing is remembered of states; of projections those of a few schedules.
    assert not keys._states and len(keys._fits) <= 4 * 3


def test_what_was_fitted_beside_other_maps_or_protected_tokens_is_fitted_anew() -> None:
    model = SkippingModel(deep_base(n_blocks=4))
    keys, draw = FittedKeys(model, prompts()), torch.Generator().manual_seed(0)
    maps = Substitutes(4, 32, 2)
    for weight in maps.parameters():
        weight.normal_(generator=draw).mul_(0.3)
    for stands_in, protected in ((None, 0), (maps, 0), (maps, 3), (None, 3), (None, 0)):
        give_substitutes(model.model, stands_in, model.blocks)
        of_these = model.protecting(protected)
        alone = FittedKeys(of_these, prompts()).of(of_these, late(0.6))
        torch.testing.assert_close(weights(keys.of(of_these, late(0.6))), weights(alone), atol=0, rtol=0)


def test_beginnings_of_schedules_are_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, ran = FittedKeys(deep(), prompts()), list[tuple[int, int]]()
    run = fitted_keys._Passing.run
    monkeypatch.setattr(
        fitted_keys._Passing,
        "run",
        lambda self, start, stop, sums: (ran.append((start, stop)), run(self, start, stop, sums)),
    )
    n = n_batches(prompts())
    keys.of(deep(), late(0.5))
    assert ran == [(0, 1)] * n + [(1, 2)] * n + [(2, 3)] * n
    ran.clear()
    keys.of(deep(), late(0.5))
    assert ran == []
    shares = [0.0, 0.5, 0.5, 0.8]
    keys.of(deep(), SparsitySchedule.of_halves(shares, shares, True))
    # What stands before the last block is known.
    assert ran == [(3, 3)] * n


def test_schedules_without_kept_keys_of_skipped_tokens_have_no_projections() -> None:
    keys = FittedKeys(deep(), prompts())
    shares = [0.0, 0.5, 0.5, 0.0]
    for schedule in (
        SparsitySchedule.uniform(0.0, 4),
        SparsitySchedule.uniform(0.5, 4),
        SparsitySchedule.of_halves(shares, shares, False),
        SparsitySchedule.of_halves([0.0] * 4, shares, True),
    ):
        assert keys.of(deep(), schedule) is None


def test_quality_is_that_of_the_projections_and_everything_else_is_left_alone() -> None:
    examples = [EncodedExample(one, ((3, 4), (5, 6)), 0, True) for one in prompts(6)]
    model, schedule = SkippingModel(deep_base(n_blocks=4)), late(0.6)
    quality, router = QualitySet(model, examples), StaticRouter()
    own = quality.evaluate(schedule, router).kl
    keys = FittedKeys(model, prompts())
    give_fitted_keys(model.model, keys)
    assert fitted_keys_of(model.model) is keys
    store = PrefixStore(2**20)
    found = [quality.evaluate(one, router, prefixes=store).kl for one in (late(0.6, 2), schedule, schedule)]
    assert store.blocks_reused > 0 and kept_projections_of(model.model) is None
    give_fitted_keys(model.model, None)
    give_kept_projections(model.model, keys.of(model, schedule))
    assert found[1] == found[2] == quality.evaluate(schedule, router).kl != own
    with pytest.raises(ZeroDivisionError), keys_fitted(model, schedule):
        raise ZeroDivisionError
    assert kept_projections_of(model.model) is not None


def test_a_copy_fits_the_same() -> None:
    model, keys = deep(), FittedKeys(deep(), prompts())
    before = keys.of(model, late(0.6))
    again: FittedKeys = pickle.loads(pickle.dumps(keys))
    assert again.fingerprint() == keys.fingerprint() != FittedKeys(model, prompts(3)).fingerprint()
    assert not again._fits and again.n_bytes == keys.n_bytes > 0
    torch.testing.assert_close(weights(again.of(model, late(0.6))), weights(before), atol=0, rtol=0)


def test_one_prompt_is_enough_and_what_does_not_help_is_left_as_it_is() -> None:
    model = deep()
    assert FittedKeys(model, prompts(1)).of(model, late(0.6)) is not None
    # Where skipped blocks add nothing, keys are the dense model's already.
    idle = SkippingModel(deep_base(n_blocks=4))
    with torch.no_grad():
        for block in idle.blocks:
            for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
                weight.zero_()
    found = FittedKeys(idle, prompts()).of(idle, late(0.6))
    assert found is not None
    for index in range(4):
        for name, part in found.of(index).items():
            own = idle.blocks[index].self_attn.get_submodule(name).weight
            torch.testing.assert_close(part.weight, own, atol=1e-5, rtol=1e-4)


def test_prompts_are_chosen_in_their_order_as_far_as_time_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [(1,), (3, 4, 5), (3, 4, 5), (), tuple(range(3, 20)), (7, 8)]
    assert prompts_to_fit(deep(), given) == [(3, 4, 5), tuple(range(3, 20)), (7, 8)]
    monkeypatch.setattr(fitted_keys, "_LONGEST", 4)
    assert prompts_to_fit(deep(), given) == [(3, 4, 5), (3, 4, 5, 6), (7, 8)]
    monkeypatch.setattr(fitted_keys, "_MOST_TOKENS", 7)
    assert prompts_to_fit(deep(), given) == [(3, 4, 5), (3, 4, 5, 6)]
    # 4 blocks, keys and values of 16 numbers each.
    monkeypatch.setattr(fitted_keys, "_MOST_BYTES", 6 * 4 * 2 * 16 * 4)
    assert prompts_to_fit(deep(), given) == [(3, 4, 5)]
    # One there must be.
    monkeypatch.setattr(fitted_keys, "_MOST_BYTES", 1)
    assert prompts_to_fit(deep(), given) == [(3, 4, 5)]
    assert prompts_to_fit(deep(), [(1,)]) == []


def test_families_whose_blocks_are_no_two_halves_are_refused() -> None:
    name = next(name for name in CONFIGS if name not in ABLE)
    with pytest.raises(ModelError, match="have parts beside attention and MLP"):
        FittedKeys(SkippingModel(tiny(name)), prompts())


@pytest.mark.parametrize("includes_base", [True, False])
@torch.inference_mode()
def test_pruned_models_are_saved_with_their_projections(includes_base: bool, tmp_path: Path) -> None:
    dense = SkippingModel(deep_base(n_blocks=4)).model
    if not includes_base:
        dense.save_pretrained(tmp_path / "dense")
        dense = type(dense).from_pretrained(tmp_path / "dense")
    model = SkippingModel(dense)
    give_kept_projections(dense, FittedKeys(model, prompts()).of(model, late(0.6)))
    pruned = FTPForCausalLM.from_dense(dense, late(0.6))
    expected = pruned(IDS).logits
    pruned.save_pretrained(tmp_path / "pruned", include_base=includes_base)
    loaded = FTPForCausalLM.from_pretrained(tmp_path / "pruned")
    torch.testing.assert_close(loaded(IDS).logits, expected)
    assert torch.equal(copy.deepcopy(loaded)(IDS).logits, loaded(IDS).logits)
    assert sum(one.numel() for one in loaded.parameters()) == sum(one.numel() for one in pruned.parameters())
    # Another schedule has those of the blocks that they are fitted to all the same.
    shares = [0.0, 0.6, 0.6, 0.9]
    other = SparsitySchedule.of_halves(shares, shares, True)
    loaded.schedule = other
    give_kept_projections(dense, KeptProjections({i: kept_projections_of(dense).of(i) for i in (1, 2)}))
    torch.testing.assert_close(loaded(IDS).logits, FTPForCausalLM.from_dense(dense, other)(IDS).logits)
    again = FTPForCausalLM.from_pretrained(tmp_path / "pruned", schedule=other.to_json())
    torch.testing.assert_close(again(IDS).logits, loaded(IDS).logits)


def test_projections_without_a_schedule_serve_any() -> None:
    projections = random_projections(SkippingModel(tiny()))
    assert projections.serving(SCHEDULE) is projections
    fitted = KeptProjections({index: projections.of(index) for index in range(N_BLOCKS)}, SCHEDULE)
    assert fitted.serving(SCHEDULE) is fitted
    other = SparsitySchedule.of_halves([0.5, 0.3, 0.0], [0.3, 0.5, 0.5], True)
    assert set(fitted.serving(other).names) == {0}
    assert fitted.serving(other).of(0) == fitted.of(0) and fitted.serving(other).of(1) == {}


@settings(max_examples=20)
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_batches_hold_every_prompt_once(lengths: list[int]) -> None:
    made = fitted_keys._batches([(length,) * length for length in lengths])
    assert len(made) == n_batches([(length,) * length for length in lengths])
    found = [int(row[0]) for batch in made for row in batch.ids]
    assert sorted(found) == sorted(lengths)
    assert all(batch.ids.numel() <= fitted_keys._AT_A_TIME for batch in made)
    assert all(bool((batch.real.sum(1) == batch.lengths).all()) for batch in made)
    assert sum(int(batch.aside.sum()) for batch in made) == len(lengths) // 5
