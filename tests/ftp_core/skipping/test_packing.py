"""Packed rows compute what padded ones do, and say where every token is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import (
    HiddenRouter,
    OnePassRouter,
    RandomRouter,
    RecurrentRouter,
    Router,
    ScoringRouter,
    StaticRouter,
)
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping import skipping_model
from ftp_core.skipping.cache import DEAD
from ftp_core.skipping.packing import ALWAYS, AUTO, NEVER, Packing, bucket, packs, slots_expected, varlen_attention
from ftp_core.skipping.skipping import PromptPass
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample, PromptBatch, pad_right, prompt_batch
from ftp_core.training.calibration import calibrate_thresholds
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.tiny_models import CONFIGS, crossed, tiny

MIXED = SparsitySchedule([0.3, 0.0, 0.6])
EXAMPLES = [
    EncodedExample(tuple(range(2 + i, 8 + 4 * i)), ((5, 6), (7,), (8 + i, 9, 10), (11 + i,)), i % 4, True)
    for i in range(7)
]
runs = st.integers(1, 5).flatmap(
    lambda n_rows: st.integers(1, 9).flatmap(
        lambda width: st.lists(
            st.lists(st.booleans(), min_size=width, max_size=width).filter(any), min_size=n_rows, max_size=n_rows
        )
    )
)


@given(run=runs, n_more=st.integers(0, 12))
def test_every_slot_holds_a_token_that_runs_or_a_filler(run: list[list[bool]], n_more: int) -> None:
    n_rows, width = len(run), len(run[0])
    kept = [(row, column) for row in range(n_rows) for column in range(width) if run[row][column]]
    rest = [(row, column) for row in range(n_rows) for column in range(width) if not run[row][column]]
    n_slots = min(len(kept) + n_more, n_rows * width)
    packing = Packing(torch.tensor(run), n_slots)
    slots = (kept + rest)[:n_slots]
    assert packing.places_N.tolist() == [row * width + column for row, column in slots]
    assert packing.columns_N.tolist() == [column for _, column in slots]
    assert packing.filler_N.tolist() == [number >= len(kept) for number in range(n_slots)]
    assert packing.starts.tolist() == [sum(map(sum, run[:row])) for row in range(n_rows + 1)]
    assert packing.starts.dtype == torch.int32
    assert [int(packing.slots_BL[place]) for place in kept + rest] == list(range(n_rows * width))
    whole, shared = torch.randn(n_rows, width, 3), torch.randn(1, width, 2)
    short, (of_shared,) = packing.gather(whole), packing.gather((shared,))
    assert torch.equal(short[0], torch.stack([whole[place] for place in slots]))
    assert torch.equal(of_shared[0], torch.stack([shared[0, column] for _, column in slots]))
    changed = whole.clone()
    for number, place in enumerate(slots):
        changed[place] = short[0, number] + 1
    assert torch.equal(packing.scatter(short + 1, whole), changed)


@given(n_tokens=st.integers(1, 40_000), n_more=st.integers(0, 5000))
def test_buckets_hold_the_tokens_and_are_few(n_tokens: int, n_more: int) -> None:
    found = bucket(n_tokens, n_tokens + n_more)
    assert n_tokens <= found <= n_tokens + n_more and found - n_tokens < 256
    assert found == n_tokens + n_more or found % 64 == 0


@given(run=runs, n_more=st.integers(0, 12), groups=st.integers(1, 3), seed=st.integers(0, 99))
def test_attention_stays_within_rows(run: list[list[bool]], n_more: int, groups: int, seed: int) -> None:
    packing = Packing(torch.tensor(run), min(sum(map(sum, run)) + n_more, len(run) * len(run[0])))
    draw, n = torch.Generator().manual_seed(seed), packing.n_slots
    query = torch.randn(n, 2 * groups, 4, generator=draw)
    key, value = (torch.randn(n, 2, 4, generator=draw) for _ in range(2))
    row_N = packing.places_N // len(run[0])
    own = row_N[:, None] == row_N
    visible = own & torch.ones(n, n, dtype=torch.bool).tril() & ~packing.filler_N
    # Fillers see themselves here, so that they are no NaN.
    visible |= torch.eye(n, dtype=torch.bool)
    parts = (query, *(part.repeat_interleave(groups, 1) for part in (key, value)))
    expected = scaled_dot_product_attention(*(part.transpose(0, 1)[None] for part in parts), visible, scale=0.7)
    found = varlen_attention(query, key, value, packing, 0.7)
    expected = expected[0].transpose(0, 1).masked_fill(packing.filler_N[:, None, None], 0.0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def routers(model: SkippingModel) -> list[Router]:
    thresholds = calibrate_thresholds(model, random_router(2, window=3), prompt_batch(EXAMPLES), MIXED)
    dynamic: list[Router] = [random_router(1, window=3), RecurrentRouter(window=3), thresholds]
    return [StaticRouter(), RandomRouter(), *dynamic, HiddenRouter(32), OnePassRouter(32, 3)]


def both(name: str, keep_first: int = 0) -> tuple[SkippingModel, SkippingModel]:
    padded, packed = SkippingModel(tiny(name), keep_first), SkippingModel(tiny(name), keep_first)
    padded.packing, packed.packing = NEVER, ALWAYS
    return padded, packed


@pytest.mark.parametrize(("family", "keep_first"), crossed(CONFIGS, [3, 0]))
def test_prompts_of_different_lengths_pass_as_if_padded(family: str, keep_first: int) -> None:
    padded, packed = both(family, keep_first)
    prompts = prompt_batch(EXAMPLES)
    for router in routers(padded):
        expected, found = (model.prefill(prompts, MIXED, router) for model in (padded, packed))
        assert all(torch.equal(*kept) for kept in zip(found.kept, expected.kept, strict=True))
        torch.testing.assert_close(found.last_hidden, expected.last_hidden, atol=1e-4, rtol=1e-4)
        for block, other in zip(found.cache.blocks, expected.cache.blocks, strict=True):
            assert torch.equal(block.positions, other.positions) and block.has_dead == other.has_dead
            alive = (block.positions != DEAD)[:, None, :, None]
            for own, padded_own in ((block.keys, other.keys), (block.values, other.values)):
                assert own is not None and padded_own is not None and own.shape == padded_own.shape
                torch.testing.assert_close(own * alive, padded_own * alive, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_quality_is_the_same(family: str) -> None:
    sets = [QualitySet(model, EXAMPLES, batch_size=4) for model in both(family)]
    for router in routers(sets[0].model):
        expected, found = (quality.evaluate(MIXED, router, choices=True) for quality in sets)
        assert found.kl == pytest.approx(expected.kl, rel=1e-3)
        assert found.accuracy == expected.accuracy


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    levels=st.lists(st.integers(0, 19), min_size=3, max_size=3),
    seed=st.integers(0, 20),
)
@settings(max_examples=25)
def test_any_prompts_pass_as_if_padded(lengths: list[int], levels: list[int], seed: int) -> None:
    padded, packed = both("llama")
    schedule, draw = SparsitySchedule.from_grid_indices(levels), torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, 50, (length,), generator=draw).tolist() for length in lengths]
    prompts = PromptBatch(pad_right(rows, 0), torch.tensor(lengths))
    thresholds = random_router(seed, window=3)
    thresholds.set_thresholds([0.0, 0.3, -0.3], schedule)
    router: Router
    for router in (random_router(seed, window=3), thresholds):
        expected, found = (model.prefill(prompts, schedule, router) for model in (padded, packed))
        torch.testing.assert_close(found.last_hidden, expected.last_hidden, atol=1e-4, rtol=1e-4)


def keeps_all(schedule: SparsitySchedule) -> ScoringRouter:
    """Thresholds that were calibrated on other prompts: here they keep every token."""
    router = random_router(1, window=3)
    router.set_thresholds([-1e9] * 3, schedule)
    return router


def test_prompts_that_keep_more_than_there_is_room_for_run_again_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[bool] = []

    class Counted(PromptPass):
        def __post_init__(self) -> None:
            passes.append(self.packs)
            super().__post_init__()

    monkeypatch.setattr(skipping_model, "PromptPass", Counted)
    padded, packed = both("llama")
    schedule, prompts = SparsitySchedule([0.6, 0.6, 0.6]), prompt_batch([*EXAMPLES, *EXAMPLES])
    router = keeps_all(schedule)
    n_tokens = int(prompts.lengths.sum())
    assert slots_expected(router, 0, 0.6, n_tokens) < 0.5 * n_tokens
    expected = padded.prefill(prompts, schedule, keeps_all(schedule))
    for attempt in ([True, False], [True]):
        passes.clear()
        found = packed.prefill(prompts, schedule, router)
        # The second time it is known that these thresholds keep everything.
        assert passes == attempt
        torch.testing.assert_close(found.last_hidden, expected.last_hidden, atol=1e-4, rtol=1e-4)
        assert [block.held for block in found.cache.blocks] == [block.held for block in expected.cache.blocks]
    assert slots_expected(router, 0, 0.6, n_tokens) == n_tokens


@pytest.mark.parametrize("kind", ["thresholds", "overflowing", "budget"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
def test_pruned_models_answer_the_same(family: str, kind: str) -> None:
    base, logits, new = tiny(family), [], []
    schedule = MIXED if kind != "overflowing" else SparsitySchedule([0.9, 0.9, 0.9])
    ids = torch.randint(3, 50, (5, 60), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row in range(5):
        mask[row, : 10 * row] = 0
    labels = ids.where(torch.arange(60) >= 52, -100)
    for packing in (NEVER, ALWAYS):
        router = random_router(1, window=3)
        if kind == "thresholds":
            router.set_thresholds([0.0, 0.0, 0.2], schedule)
        pruned = FTPForCausalLM.from_dense(base, schedule, keeps_all(schedule) if kind == "overflowing" else router)
        pruned.packing = packing
        with torch.no_grad():
            out = pruned(ids, attention_mask=mask, labels=labels)
            logits.append((out.logits[mask.bool()], out.loss))
        new.append(pruned.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False))
    torch.testing.assert_close(logits[1], logits[0], atol=1e-3, rtol=1e-3)
    assert torch.equal(*new)


def test_rows_are_packed_where_a_kernel_computes_the_same() -> None:
    cpu = torch.device("cpu")
    assert not packs(tiny("llama"), cpu, AUTO) and packs(tiny("llama"), cpu, ALWAYS)
    assert not packs(tiny("llama"), cpu, NEVER)
    # Its scores are capped.
    assert not packs(tiny("gemma2"), cpu, ALWAYS)


def test_no_block_waits_for_the_host() -> None:
    """On devices that only pretend to compute, where reading a number is an error (see the module)."""
    script = Path(__file__).with_name("pretend_devices.py")
    done = subprocess.run([sys.executable, str(script), "packed"], capture_output=True, text=True, cwd=Path.cwd())
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
