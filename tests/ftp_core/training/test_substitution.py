"""Maps are the best of their rank, and spare a model what its tokens skip."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftp_core.errors import DataError, ModelError
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.families import family_of
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.skipping.substitutes import LowRank, give_substitutes
from ftp_core.text.encoding import EncodedExample
from ftp_core.training import substitution
from ftp_core.training.substitution import _Sums, fit_substitutes, n_passes
from tests.ftp_core.tiny_models import CONFIGS, N_BLOCKS, VOCABULARY, each, fresh_tiny, tiny

ABLE = [name for name in CONFIGS if family_of(tiny(name).config).halves is not None]


def drawn(n: int, seed: int = 0, longest: int = 20) -> list[EncodedExample]:
    rng = np.random.default_rng(seed)
    rows = [tuple(rng.integers(3, VOCABULARY, rng.integers(2, longest)).tolist()) for _ in range(n)]
    return [EncodedExample(row, ((3, 4),), 0, False) for row in rows]


@settings(max_examples=25)
@given(
    rank=st.integers(1, 6), n_batches=st.integers(1, 3), offset=st.sampled_from([0.0, 30.0]), seed=st.integers(0, 99)
)
def test_a_map_is_the_best_of_its_rank(rank: int, n_batches: int, offset: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    read = rng.normal(size=(n_batches, 40, 6)) + offset
    added = np.tanh(read - offset) @ rng.normal(size=(6, 6)) + 0.1 * rng.normal(size=read.shape) + 2.0
    sums, found = _Sums(), LowRank(6, rank, torch.float32)
    for one, other in zip(read, added, strict=True):
        sums.add(torch.tensor(one, dtype=torch.float32), torch.tensor(other, dtype=torch.float32))
    sums.fit(found)
    # Ridge regression is least squares with rows that pull towards zero; of its outputs there, the best of a rank are
    # their singular vectors (Eckart and Young, 1936).
    x, y = (part.reshape(-1, 6) - part.reshape(-1, 6).mean(0) for part in (read, added))
    ridge = np.sqrt(len(x) * substitution._RIDGE * x.var(0).mean()) * np.eye(6)
    x_more, y_more = np.concatenate([x, ridge]), np.concatenate([y, np.zeros((6, 6))])
    full = np.linalg.lstsq(x_more, y_more, rcond=None)[0]
    directions = np.linalg.svd(x_more @ full)[2][:rank]
    expected = x @ full @ directions.T @ directions + added.reshape(-1, 6).mean(0)
    mapped = found(torch.tensor(read.reshape(-1, 6), dtype=torch.float32)).double().numpy()
    np.testing.assert_allclose(mapped, expected, atol=2e-2 if offset else 1e-4)


@pytest.mark.parametrize("name", each(ABLE))
def test_every_family_loses_less_where_maps_stand_in(name: str) -> None:
    model = SkippingModel(fresh_tiny(name))
    examples = of_few_words(drawn(60, longest=30))
    quality = QualitySet(model, drawn_like(examples))
    schedule = SparsitySchedule.of_halves([0.0] + [0.5] * (N_BLOCKS - 1), [0.5] * N_BLOCKS, True)
    without = quality.evaluate(schedule, StaticRouter()).kl
    give_substitutes(model.model, fit_substitutes(model, examples, 24), model.blocks)
    assert quality.evaluate(schedule, StaticRouter()).kl < 0.9 * without


def of_few_words(examples: list[EncodedExample]) -> list[EncodedExample]:
    """Examples in which what tokens read is of few kinds, so that a map can know it."""
    return [
        EncodedExample(tuple(3 + token % 5 for token in one.prompt), one.continuations, 0, False) for one in examples
    ]


def drawn_like(examples: list[EncodedExample]) -> list[EncodedExample]:
    return [EncodedExample(tuple(reversed(one.prompt)), one.continuations, 0, False) for one in examples[:20]]


def test_blocks_are_fitted_in_parts_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples, calls = SkippingModel(tiny()), drawn(20), []
    whole = fit_substitutes(model, examples, 3)
    monkeypatch.setattr(substitution, "_MOST_BYTES", 3 * 2 * 4 * 32**2)
    parts = fit_substitutes(model, examples, 3, lambda: calls.append(1))
    assert len(calls) == n_passes(model, examples) == 3 * 3
    for name, weight in parts.state_dict().items():
        torch.testing.assert_close(weight, whole.state_dict()[name], atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_the_map_of_a_whole_block_is_of_what_is_before_it_whatever_its_scale() -> None:
    model, examples = SkippingModel(fresh_tiny()), of_few_words(drawn(60, longest=30))
    maps, block = fit_substitutes(model, examples, 32).of(1), model.blocks[1]
    heard: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = block.register_forward_hook(lambda _, inputs, out: heard.append((inputs[0], out)))
    model.decoder(input_ids=torch.tensor([examples[0].prompt]), use_cache=False)
    handle.remove()
    before, behind = (states[0, 1:] for states in heard[0])
    # Of full rank, so that what is left is what no linear map of scaled states knows.
    assert (before + maps.whole(before) - behind).norm() < 0.5 * (behind - before).norm()
    torch.testing.assert_close(maps.whole(7.0 * before), maps.whole(before))


def test_ranks_and_prompts_that_allow_none_are_refused() -> None:
    model = SkippingModel(tiny())
    for rank in (0, 33):
        with pytest.raises(ModelError, match=f"rank of substitutes is {rank}: expected one from 1 to .* 32"):
            fit_substitutes(model, drawn(3), rank)
    with pytest.raises(DataError, match="No prompt has a second token"):
        fit_substitutes(model, [EncodedExample((5,), ((3,),), 0, False)], 2)
    with pytest.raises(ModelError, match="parts beside attention and MLP"):
        fit_substitutes(SkippingModel(tiny("gemma4_text")), drawn(3), 2)
