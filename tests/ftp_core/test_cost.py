"""FLOPs are what torch counts; predictions interpolate what was profiled."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ftp_core.cost import LatencyProfile, measure_latency, prefill_flops, profile_latency, timing_batch
from ftp_core.routers import StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping_model import SkippingModel
from tests.ftp_core.test_skipping import N_BLOCKS, tiny

PROFILE = LatencyProfile(
    batch=2, length=100, threads=1, kept=(5, 50, 99, 100), block_ms=(1.0, 4.0, 8.0, 7.0), fixed_ms=2.0
)


@pytest.mark.parametrize("levels", [(0, 0, 0), (4, 10, 18), (19, 0, 7)])
def test_flops_are_those_that_torch_counts(levels: tuple[int, ...]) -> None:
    model, schedule = SkippingModel(tiny()), SparsitySchedule.from_levels(levels)
    prompts = timing_batch([[1, 2, 3]], 3, 40)
    # torch counts nothing for its fused attention on the CPU; the plain one is made of products that it does count.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.next_logits(model.prefill(prompts, schedule, StaticRouter()))
    assert prefill_flops(model, schedule, 3, 40) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_timing_batch_is_rectangular_and_made_of_the_prompts_tokens() -> None:
    prompts = timing_batch([[1, 2, 3], [4, 5]], 2, 4)
    assert prompts.ids.tolist() == [[1, 2, 3, 4], [5, 1, 2, 3]]
    assert prompts.lengths.tolist() == [4, 4]


def test_prediction_is_exact_at_profiled_counts_and_linear_between() -> None:
    assert PROFILE.predict_ms(SparsitySchedule([0.5, 0.95])) == pytest.approx(4.0 + 1.0 + 2.0)
    assert PROFILE.predict_ms(SparsitySchedule([0.725])) == pytest.approx(1.0 + 3.0 * 23 / 45 + 2.0)


def test_a_block_that_keeps_everything_does_not_pay_for_gathering() -> None:
    assert PROFILE.predict_ms(SparsitySchedule([0.0])) == 9.0
    assert PROFILE.predict_ms(SparsitySchedule([0.01])) == 10.0


def test_a_profile_survives_json() -> None:
    assert LatencyProfile.from_json(PROFILE.to_json()) == PROFILE


def test_a_measured_profile_covers_the_whole_range() -> None:
    model = SkippingModel(tiny())
    profile = profile_latency(model, timing_batch([[1, 2, 3]], 2, 40), repeats=2)
    assert profile.kept == tuple(sorted(profile.kept))
    assert profile.kept[-2:] == (39, 40)
    assert profile.predict_ms(SparsitySchedule.uniform(0.5, N_BLOCKS)) > 0


def test_latencies_come_back_in_the_order_of_the_variants() -> None:
    rounds: list[int] = []
    model = SkippingModel(tiny())
    variants = [(SparsitySchedule.uniform(s, N_BLOCKS), StaticRouter()) for s in (0.0, 0.5)]
    latencies = measure_latency(model, timing_batch([[1, 2]], 2, 30), variants, 3, lambda: rounds.append(1))
    assert len(latencies) == 2
    assert len(rounds) == 3
    assert all(latency.low_ms <= latency.median_ms <= latency.high_ms for latency in latencies)
