"""Latency is predicted from measured times: exactly where it was measured, interpolated between, and nowhere else."""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftp_core.cost.conditions import Conditions, ProfileError, profile_conditions
from ftp_core.cost.contention import Contention, pressure_us
from ftp_core.cost.half_times import HalfProfile
from ftp_core.cost.profile import LatencyProfile, router_kind
from ftp_core.cost.profiling import block_kinds, profile_latency, profile_shape
from ftp_core.cost.samples import undisturbed, undisturbed_median
from ftp_core.cost.shape_profile import ShapeProfile
from ftp_core.cost.stopwatch import COLD, DECODED, PassTimes, TimedPasses, Timeline
from ftp_core.errors import DataError, ScheduleError
from ftp_core.routers import HiddenRouter, OnePassRouter, StaticRouter
from ftp_core.schedule import BlockSparsity, SparsitySchedule, kept_count
from ftp_core.skipping.skipping_model import SkippingModel
from tests.ftp_core.cost.made_up_profiles import CONDITIONS, profile_of, shape_of
from tests.ftp_core.tiny_models import CONTEXT, N_BLOCKS, tiny

SHAPE = shape_of(2, 100, (5, 50, 99, 100), ((1.0, 4.0, 8.0, 7.0),), fixed_ms=2.0)
KINDS = (0, 1, 1, 1)
RICH = LatencyProfile(
    (
        ShapeProfile(
            batch=1,
            length=40,
            kept=(2, 20, 39, 40),
            block_ms=((1.0, 3.0, 6.0, 5.0), (2.0, 4.0, 7.0, 6.5)),
            fixed_ms=0.5,
            iqr_ms=((0.1,) * 4,) * 2,
            score_ms=0.25,
            listen_ms=((0.1, 0.2, 0.3, 0.4), (0.2, 0.4, 0.6, 0.8)),
            held=(5, 23, 43),
            decode_block_ms=((0.1, 0.2, 0.4), (0.2, 0.3, 0.4)),
            decode_fixed_ms=0.7,
            unsteady=(("prefill", 20),),
            check_error=0.02,
            uncertainty=0.06,
            seconds=14.5,
        ),
    ),
    KINDS,
    ("0", "1-3"),
    CONDITIONS,
)


def mixed_schedule(rng: random.Random, n_blocks: int = len(KINDS)) -> SparsitySchedule:
    """Whole blocks, blocks on the grid, and blocks off it."""
    return SparsitySchedule(
        [rng.choice([0.0, rng.uniform(0, 0.95), 0.05 * rng.randint(0, 19)]) for _ in range(n_blocks)]
    )


# What a profile predicts.


def test_prediction_is_exact_at_profiled_counts_and_linear_between() -> None:
    assert profile_of(2, SHAPE).predict_ms(SparsitySchedule([0.5, 0.95])) == pytest.approx(4.0 + 1.0 + 2.0)
    assert profile_of(1, SHAPE).predict_ms(SparsitySchedule([0.725])) == pytest.approx(1.0 + 3.0 * 23 / 45 + 2.0)


def test_a_block_that_keeps_everything_does_not_pay_for_gathering() -> None:
    profile = profile_of(1, SHAPE)
    assert profile.predict_ms(SparsitySchedule([0.0])) == 9.0
    assert profile.predict_ms(SparsitySchedule([0.01])) == 10.0


def slow_prediction(schedule: SparsitySchedule, router: str) -> float:
    shape = RICH.shapes[0]
    total = shape.fixed_ms
    counts = schedule.kept_counts(shape.length)

    def read(rows: tuple[tuple[float, ...], ...], index: int) -> float:
        row, count = rows[KINDS[index]], counts[index]
        return row[-1] if count == shape.length else float(np.interp(count, shape.kept[:-1], row[:-1]))

    for index in range(len(schedule)):
        total += read(shape.block_ms, index)
        if router == "dynamic" and schedule[index] > 0:
            total += shape.score_ms + (read(shape.listen_ms, index - 1) if index else 0.0)
    return total


@pytest.mark.parametrize("router", ["static", "dynamic"])
def test_a_dynamic_router_adds_its_decisions_and_the_listening_before_them(router: str) -> None:
    rng = random.Random(0)
    schedules = [mixed_schedule(rng) for _ in range(200)]
    slow = [slow_prediction(schedule, router) for schedule in schedules]
    assert [RICH.predict_ms(schedule, router=router) for schedule in schedules] == pytest.approx(slow)


def test_a_one_pass_router_adds_cheap_decisions_and_its_scores_once() -> None:
    profile = replace(RICH, shapes=(replace(RICH.shapes[0], choice_ms=0.05, once_ms=0.7),))
    dense, plain = SparsitySchedule([0.0] * 4), SparsitySchedule([0.0, 0.5, 0.0, 0.3])
    assert profile.predict_ms(dense, router="one-pass") == profile.predict_ms(dense)
    assert profile.predict_ms(plain, router="one-pass") == pytest.approx(profile.predict_ms(plain) + 2 * 0.05 + 0.7)
    # No block is charged for what all share.
    half = BlockSparsity(0.5, 0.5)
    assert profile.block_ms(1, half, router="one-pass") == pytest.approx(profile.block_ms(1, half) + 0.05)
    assert LatencyProfile.from_json(json.loads(json.dumps(profile.to_json()))) == profile


def test_profiles_of_before_charge_a_one_pass_router_for_decisions_of_the_dynamic_one() -> None:
    schedule = SparsitySchedule([0.0, 0.5, 0.0, 0.3])
    old = RICH.to_json()
    for shape in old["shapes"]:
        del shape["choice_ms"], shape["once_ms"]
    expected = RICH.predict_ms(schedule) + 3 * RICH.shapes[0].score_ms
    assert LatencyProfile.from_json(old).predict_ms(schedule, router="one-pass") == pytest.approx(expected)


def test_routers_are_predicted_as_what_they_compute() -> None:
    kinds = {StaticRouter(): "static", OnePassRouter(8, 2): "one-pass", HiddenRouter(8): "dynamic"}
    assert {router: router_kind(router) for router in kinds} == kinds


def test_a_decoded_token_takes_what_the_keys_that_blocks_hold_make_it_take() -> None:
    schedule = SparsitySchedule([0.95, 0.95, 0.5, 0.5])
    # The keys of the prompt and the token's own.
    first = 0.7 + 0.1 + 0.2 + 2 * (0.2 + 0.1 * 16 / 18)
    assert RICH.decode_ms(schedule) == pytest.approx(first)
    assert RICH.decode_ms(schedule, decoded=2) == pytest.approx(0.7 + 0.1 + 0.2 + 2 * 0.3)
    # Behind what was measured, it grows on.
    dense = SparsitySchedule.uniform(0.0, 4)
    assert RICH.decode_ms(dense, decoded=22) == pytest.approx(0.7 + 0.4 + 3 * 0.4 + (0.2 + 3 * 0.1))


def grown(batch: int, length: int) -> ShapeProfile:
    """A shape whose blocks take a L + b L^2 at equal shares of the tokens, and which listens for c L."""
    kept = tuple(length * part // 20 for part in (1, 5, 10, 15, 20))
    block_ms = tuple(batch * (0.01 * count + 1e-5 * count * count) for count in kept)
    return shape_of(
        batch,
        length,
        (*kept[:-1], length),
        (block_ms,),
        fixed_ms=1.0 + 0.001 * length,
        listen_ms=(tuple(0.002 * count for count in kept),),
        held=(length // 2, length),
        decode_block_ms=((1.0, 1.0 + 0.001 * length / 2),),
    )


def test_lengths_between_profiled_ones_are_read_at_the_same_share_of_kept_tokens() -> None:
    profile = profile_of(2, grown(1, 800), grown(1, 400))
    for share in (0.0, 0.25, 0.5, 0.75):
        schedule = SparsitySchedule([share, share])
        kept = (1 - share) * 600
        blocks = 2 * (0.01 * kept + 1e-5 * kept * kept)
        listening = 0.002 * kept if share else 0.0
        assert profile.predict_ms(schedule, length=600) == pytest.approx(1.6 + blocks)
        assert profile.predict_ms(schedule, length=600, router="dynamic") == pytest.approx(1.6 + blocks + listening)
    # Of decoding only the keys matter: those of the longer length have them all.
    assert profile.decode_ms(SparsitySchedule([0.0, 0.0]), length=600) == pytest.approx(2 * (1.0 + 0.001 * 201))


def test_what_was_not_profiled_is_refused_with_what_was() -> None:
    profile = profile_of(1, grown(8, 400), grown(1, 400), grown(8, 800))
    half = SparsitySchedule([0.5])
    assert (profile.batch, profile.length) == (1, 400)
    assert profile.predict_ms(half, batch=8) == profile.predict_ms(half, batch=8, length=400)
    with pytest.raises(ProfileError, match="A batch of 4 was not profiled; these were: 1, 8"):
        profile.predict_ms(half, batch=4)
    with pytest.raises(ProfileError, match="1000 lies outside what was profiled for a batch of 8: 400, 800"):
        profile.predict_ms(half, batch=8, length=1000)
    with pytest.raises(ProfileError, match="399 lies outside"):
        profile.predict_ms(half, length=399)
    with pytest.raises(ProfileError, match="600 lies outside"):
        profile.decode_ms(half, length=600)
    with pytest.raises(ScheduleError, match="3 sparsities, but the profiled model has 4 blocks"):
        RICH.predict_ms(SparsitySchedule([0.0] * 3))
    with pytest.raises(ProfileError, match="one batch and length at least"):
        profile_of(1)


def test_the_nearest_shape_has_a_batch_of_about_the_same_size_and_a_length_in_its_range() -> None:
    profile = profile_of(1, grown(1, 400), grown(8, 200), grown(8, 800))
    assert profile.nearest_shape(2, 600) == (1, 400)
    assert profile.nearest_shape(3, 600) == (8, 600)
    assert profile.nearest_shape(64, 100) == (8, 200)
    assert profile.nearest_shape(8, 801) == (8, 800)
    profile.predict_ms(SparsitySchedule([0.5]), batch=8, length=profile.nearest_shape(3, 600)[1])


def test_blocks_that_would_not_gain_run_whole() -> None:
    # One token less than all takes longer than all; 0.1 of the tokens less still does.
    schedule = SparsitySchedule([0.01, 0.1, 0.5, 0.0])
    profile = profile_of(4, SHAPE)
    worthwhile = profile.worthwhile(schedule)
    assert worthwhile == SparsitySchedule([0.0, 0.0, 0.5, 0.0])
    assert profile.predict_ms(worthwhile) < profile.predict_ms(schedule)
    # What decisions and listening cost must be gained, too.
    dear = profile_of(2, replace(SHAPE, score_ms=2.0, listen_ms=((1.5, 1.5, 1.5, 1.5),)))
    assert dear.worthwhile(SparsitySchedule([0.5, 0.5])) == SparsitySchedule([0.5, 0.5])
    assert dear.worthwhile(SparsitySchedule([0.5, 0.5]), router="dynamic") == SparsitySchedule([0.5, 0.0])
    assert dear.worthwhile(SparsitySchedule([0.5, 0.5]), 2, 100) == SparsitySchedule([0.5, 0.5])


# What a profile keeps.


def test_a_profile_survives_json() -> None:
    for profile in (RICH, HALVES, profile_of(2, grown(8, 400), grown(1, 400))):
        assert LatencyProfile.from_json(json.loads(json.dumps(profile.to_json()))) == profile
        # Whoever shows a study reads these two beside the profile.
        assert {key: profile.to_json()[key] for key in ("batch", "length")} == {"batch": 1, "length": profile.length}


def test_what_is_no_profile_of_this_program_is_refused() -> None:
    with pytest.raises(ProfileError, match="version 3, and this program reads 1"):
        LatencyProfile.from_json({**RICH.to_json(), "version": 3})
    rich = RICH.to_json()
    for values in ({}, {"version": 1, "shapes": 1}, {**rich, "conditions": None}, {**rich, "shapes": [{}]}):
        with pytest.raises(ProfileError, match="This is no latency profile"):
            LatencyProfile.from_json(values)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kept": ()}, "must ascend to the length"),
        ({"kept": (7, 1, 100)}, "must ascend to the length"),
        ({"length": 101}, "must ascend to the length"),
        ({"held": ()}, "held keys .*, but they must ascend"),
        ({"block_ms": ((1.0, 2.0),)}, "each at"),
        ({"block_ms": (("fast",) * 4,)}, "the time 'fast'"),
        ({"fixed_ms": float("nan")}, "the time nan"),
        ({"fixed_ms": -1.0}, "the time -1.0"),
    ],
)
def test_times_that_cannot_be_are_refused_by_name(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ProfileError, match=says):
        profile_of(1, replace(SHAPE, **change))


def test_blocks_of_a_kind_without_times_are_refused() -> None:
    with pytest.raises(ProfileError, match="for 1 kinds of blocks, but must have them for 2"):
        replace(profile_of(2, SHAPE), blocks=(0, 1))


def test_profiles_are_joined_and_taken_apart_by_shape() -> None:
    one, other = profile_of(1, grown(1, 400)), profile_of(1, grown(8, 400))
    joined = LatencyProfile.joined([other, one])
    assert joined == profile_of(1, grown(1, 400), grown(8, 400))
    assert joined.parts() == [one, other]
    with pytest.raises(ProfileError, match="threads 2, here 4"):
        LatencyProfile.joined([RICH, replace(RICH, conditions=replace(CONDITIONS, threads=4))])


def test_conditions_differ_in_the_fields_that_the_error_names() -> None:
    assert CONDITIONS.fingerprint(1, 512) == replace(CONDITIONS).fingerprint(1, 512)
    assert CONDITIONS.differences(replace(CONDITIONS)) == ()
    CONDITIONS.check(replace(CONDITIONS))
    fingerprints = {CONDITIONS.fingerprint(1, 512), CONDITIONS.fingerprint(8, 512), CONDITIONS.fingerprint(1, 1024)}
    for field in fields(Conditions):
        value = getattr(CONDITIONS, field.name)
        other = replace(CONDITIONS, **{field.name: value + 1 if isinstance(value, int) else "another"})
        fingerprints.add(other.fingerprint(1, 512))
        with pytest.raises(ProfileError, match=rf"\({field.name} .*, here "):
            CONDITIONS.check(other)
    assert len(fingerprints) == 3 + len(fields(Conditions))
    two = replace(CONDITIONS, gpu="a GPU", dtype="bfloat16")
    assert CONDITIONS.differences(two) == ("gpu 'none', here 'a GPU'", "dtype 'float32', here 'bfloat16'")


def test_a_profile_is_used_only_where_it_was_measured() -> None:
    model = SkippingModel(tiny())
    here = profile_conditions(model)
    assert here == profile_conditions(model.model)
    assert here.dtype == "float32" and here.kernel == "sdpa" and here.gpu == "none" and here.threads == 1
    replace(RICH, conditions=here).check(model)
    with pytest.raises(ProfileError, match="cpu 'a processor', here .*measure one here with `ftp-search profile`"):
        RICH.check(model)
    assert profile_conditions(SkippingModel(tiny("gemma2"))).model != here.model


# How a profile is measured.

LENGTH = 100
N_MADE_UP = 6
MADE_UP_KINDS = (0, 1, 1, 1, 1, 1)
Noise = Callable[[random.Random, int], float]


class MadeUp:
    """Passes whose times follow a formula.

    Args:
        noise: A factor on a block's time, drawn in the n-th pass.
        drift: A factor on whole passes, which are those that predictions are compared with.
        pass_s: What the clock of `timer` takes for a pass, whatever its blocks take.
    """

    def __init__(self, noise: Noise = lambda rng, n: 1.0, drift: float = 1.0, pass_s: float = 0.1) -> None:
        self.noise = noise
        self.drift = drift
        self.pass_s = pass_s
        self.n_passes = 0
        self.n_whole = 0
        self.rng = random.Random(1)
        self.counts: tuple[int, ...] = ()

    def timer(self) -> float:
        return self.pass_s * (self.n_passes + self.n_whole)

    def true_ms(self, schedule: SparsitySchedule, dynamic: bool) -> list[float]:
        times, entries = [], schedule.blocks
        for index, entry in enumerate(entries):
            listens = dynamic and index + 1 < len(entries) and not entries[index + 1].is_dense
            count, keys = kept_count(entry.attention, LENGTH), entry.n_keys(LENGTH)
            ms = 0.04 * count + 0.0001 * count * count + (0.5 if count < LENGTH else 0.0)
            if not entry.is_whole:
                of_mlp = kept_count(entry.mlp, LENGTH)
                used = max(count, of_mlp)
                ms = 0.02 * count + 0.0001 * count * keys + 0.004 * (keys - count) + (0.2 if count < LENGTH else 0.0)
                ms += (
                    0.015 * of_mlp + (0.1 if of_mlp < LENGTH else 0.0) + 0.005 * used + (0.3 if used < LENGTH else 0.0)
                )
            ms += (0.2 if index == 0 else 0.0) + (0.1 + 0.002 * keys if listens else 0.0)
            times.append(ms + (0.15 if dynamic else 0.05) * entry.n_decisions)
        return times

    def prefill(self, schedule: SparsitySchedule, dynamic: bool) -> PassTimes:
        self.n_passes += 1
        self.counts = schedule.kept_counts(LENGTH)
        block_ms = tuple(ms * self.noise(self.rng, self.n_passes) for ms in self.true_ms(schedule, dynamic))
        decisions = [entry.n_decisions for entry in schedule.blocks]
        keep_ms = tuple((0.15 if dynamic else 0.05) * n if n else None for n in decisions)
        return PassTimes(sum(block_ms) + 2.0, block_ms, keep_ms)

    def decode(self) -> list[PassTimes]:
        times = []
        for step in range(DECODED):
            # The first ones are slow, and do not count.
            ms = tuple((0.3 + 0.001 * (count + step + 1)) * (9 if step < COLD else 1) for count in self.counts)
            times.append(PassTimes(sum(ms) + 0.4, ms, (None,) * len(ms)))
        return times

    def one_pass_ms(self) -> tuple[float, float]:
        return 0.03, 0.4

    def whole_ms(self, schedule: SparsitySchedule, dynamic: bool) -> float:
        self.n_whole += 1
        return (sum(self.true_ms(schedule, dynamic)) + 2.0) * self.drift


def measured(passes: MadeUp, seconds: float = 60.0, halves: bool = False) -> LatencyProfile:
    shape = profile_shape(passes, MADE_UP_KINDS, 1, LENGTH, seconds=seconds, timer=passes.timer, halves=halves)
    return LatencyProfile((replace(shape, waited=None),), MADE_UP_KINDS, ("0", "1-5"), CONDITIONS)


HALVES = measured(MadeUp(), halves=True)


def errors(passes: MadeUp, profile: LatencyProfile, n: int = 50) -> list[float]:
    rng, found = random.Random(3), []
    for dynamic in (False, True):
        for _ in range(n):
            schedule = SparsitySchedule.from_grid_indices([rng.randint(0, 19) for _ in range(N_MADE_UP)])
            true = sum(passes.true_ms(schedule, dynamic)) + 2.0
            predicted = profile.predict_ms(schedule, router="dynamic" if dynamic else "static")
            found.append(abs(predicted / true - 1))
    return found


def half_errors(passes: MadeUp, profile: LatencyProfile, n: int = 50) -> list[float]:
    """Errors for schedules whose halves skip apart, and of which some keep keys and values."""
    rng, found = random.Random(4), []
    for router in ("static", "dynamic"):
        for _ in range(n):
            shares = [[0.05 * rng.randint(0, 19) for _ in range(N_MADE_UP)] for _ in range(2)]
            schedule = SparsitySchedule.of_halves(*shares, [rng.random() < 0.5 for _ in range(N_MADE_UP)])
            true = sum(passes.true_ms(schedule, router == "dynamic")) + 2.0
            found.append(abs(profile.predict_ms(schedule, router=router) / true - 1))
    return found


def worst_error(passes: MadeUp, profile: LatencyProfile) -> float:
    return max(errors(passes, profile))


def test_without_noise_a_profile_finds_the_formula() -> None:
    passes = MadeUp()
    profile = measured(passes)
    [shape] = profile.shapes
    assert worst_error(passes, profile) < 0.005
    assert shape.check_error < 0.005
    assert shape.uncertainty < 0.015
    # Four to warm up, three at each of thirteen and five kept counts, three for each of six schedules.
    assert (passes.n_passes, passes.n_whole) == (4 + 3 * (13 + 5), 18)
    assert shape.seconds == pytest.approx(0.1 * (58 + 18))
    assert shape.unsteady == () and profile.doubts() == ()
    assert shape.fixed_ms == pytest.approx(2.0)
    assert shape.score_ms == pytest.approx(0.1)
    assert (shape.choice_ms, shape.once_ms) == (0.03, 0.4)
    assert shape.kept[-2:] == (LENGTH - 1, LENGTH)
    assert shape.listen_ms[1] == pytest.approx([0.1 + 0.002 * count for count in shape.kept])
    assert shape.listen_ms[0] == pytest.approx(shape.listen_ms[1])
    schedule = SparsitySchedule([0.5] * N_MADE_UP)
    assert profile.decode_ms(schedule, decoded=9) == pytest.approx(0.4 + N_MADE_UP * (0.3 + 0.001 * 60))
    assert all(iqr == pytest.approx(0.0, abs=1e-9) for row in shape.iqr_ms for iqr in row)


def test_times_of_halves_are_found_in_few_passes_more() -> None:
    passes, plain = MadeUp(), MadeUp()
    profile = measured(passes, halves=True)
    [shape] = profile.shapes
    assert max(half_errors(passes, profile)) < 0.02 and shape.check_error < 0.02
    assert profile.doubts() == () and profile.has_halves and not measured(plain).has_halves
    # Four counts of each of four ways to skip, in three rounds: in six blocks at once.
    assert passes.n_passes - plain.n_passes <= 1 + 3 * math.ceil(16 / 6)
    # What is known without them is known as well with them.
    assert worst_error(passes, profile) < 0.005
    tied = SparsitySchedule.of_halves([0.6] * N_MADE_UP, [0.6] * N_MADE_UP, True)
    # The first block may not have been timed there, and is taken to gain as others do.
    assert profile.predict_ms(tied) == pytest.approx(sum(passes.true_ms(tied, dynamic=False)) + 2.0, rel=0.01)


def test_halves_have_times_however_little_time_there_is() -> None:
    passes = MadeUp(pass_s=100.0)
    profile = measured(passes, halves=True)
    # Two counts of each of four ways to skip: in six blocks at once; and one comparison more.
    assert (passes.n_passes, passes.n_whole) == (1 + 4 + 2 + math.ceil(8 / 6), 3)
    assert profile.has_halves and max(half_errors(passes, profile)) < 0.1


def test_a_disturbed_machine_does_not_spoil_times_of_halves() -> None:
    passes = MadeUp(lambda rng, n: rng.lognormvariate(0.0, 0.02) * (rng.uniform(1.0, 10.0) if n % 3 == 0 else 1.0))
    profile = measured(passes, halves=True)
    assert statistics.median(half_errors(passes, profile)) < 0.05


def test_without_times_of_halves_only_whole_blocks_are_predicted() -> None:
    profile, halves = measured(MadeUp()), SparsitySchedule.of_halves([0.5] * 6, [0.0] * 6)
    assert profile.predict_ms(SparsitySchedule([0.5] * 6)) > 0
    for ask in (profile.predict_ms, profile.worthwhile):
        with pytest.raises(ProfileError, match="no times of blocks whose halves skip apart.*--remeasure"):
            ask(halves)
    # A profile of an earlier version of the program has no word of them.
    stored = profile.to_json()
    for shape in stored["shapes"]:
        del shape["halves"]
    assert LatencyProfile.from_json(json.loads(json.dumps(stored))) == profile


@given(st.data())
def test_times_of_blocks_add_up_to_that_of_the_model(data: st.DataObject) -> None:
    shares = st.lists(st.integers(0, 19).map(lambda index: 0.05 * index), min_size=6, max_size=6)
    keeps_kv = data.draw(st.lists(st.booleans(), min_size=6, max_size=6))
    schedule = SparsitySchedule.of_halves(data.draw(shares), data.draw(shares), keeps_kv)
    alone = sum(HALVES.block_ms(index, entry) for index, entry in enumerate(schedule.blocks))
    assert HALVES.predict_ms(schedule) == pytest.approx(HALVES.shapes[0].fixed_ms + alone)
    # What decoding takes depends on the keys alone.
    keys = SparsitySchedule([0.0 if keep else s for s, keep in zip(schedule.attention, schedule.keeps_kv, strict=True)])
    assert HALVES.decode_ms(schedule) == HALVES.decode_ms(keys)


def test_halves_that_would_not_gain_run_whole() -> None:
    # Here skipping the attention and keeping its keys takes longer than running it, and the MLP gains.
    flat = ((9.0, 9.0),)
    halves = HalfProfile(
        (5, 99), attention=((2.0, 7.5),), attention_kept=flat, mlp=((2.0, 7.5),), both_kept=((4.0, 9.0),)
    )
    profile = profile_of(4, replace(SHAPE, halves=halves))
    asked = SparsitySchedule.of_halves([0.95, 0.95, 0.01, 0.95], [0.95, 0.0, 0.01, 0.0], [True, True, True, False])
    assert profile.worthwhile(asked) == SparsitySchedule.of_halves([0.0, 0.0, 0.0, 0.95], [0.95, 0.0, 0.0, 0.0])


def test_times_of_halves_that_cannot_be_are_refused() -> None:
    good = HalfProfile((5, 50), *(((1.0, 2.0),) for _ in range(4)))
    profile_of(1, replace(SHAPE, halves=good))
    for wrong, says in (
        (replace(good, kept=(50, 5)), "must ascend, below the length"),
        (replace(good, kept=(5, 100)), "must ascend, below the length"),
        (replace(good, mlp=()), "has mlp for 0 kinds"),
        (replace(good, both_kept=((1.0, -2.0),)), "the time -2.0"),
    ):
        with pytest.raises(ProfileError, match=says):
            profile_of(1, replace(SHAPE, halves=wrong))


def test_noise_that_repeating_levels_out_leaves_no_doubt() -> None:
    passes = MadeUp(lambda rng, n: rng.lognormvariate(0.0, 0.05))
    profile = measured(passes)
    assert profile.doubts() == ()
    assert worst_error(passes, profile) < 0.05


def test_what_was_measured_while_the_machine_was_busy_is_measured_again() -> None:
    # A third of the time of the first rounds, everything takes up to ten times as long.
    passes = MadeUp(lambda rng, n: rng.uniform(1.0, 10.0) if n < 60 and n % 3 == 0 else 1.0)
    quiet = MadeUp()
    profile = measured(passes)
    assert measured(quiet).doubts() == () and passes.n_passes > quiet.n_passes
    assert profile.doubts() == ()
    assert worst_error(passes, profile) < 0.05


def test_a_machine_on_which_blocks_often_wait_for_a_core_is_profiled_as_if_they_did_not() -> None:
    # Each block that is interrupted, which most are, takes up to twenty times as long.
    passes = MadeUp(
        lambda rng, n: rng.lognormvariate(0.0, 0.02) + (rng.uniform(1.0, 20.0) if rng.random() < 0.6 else 0.0)
    )
    profile = measured(passes, seconds=1e9)
    found = sorted(errors(passes, profile))
    assert found[len(found) // 2] < 0.03
    # It takes more passes than where nothing disturbs.
    quiet = MadeUp(lambda rng, n: rng.lognormvariate(0.0, 0.02))
    measured(quiet, seconds=1e9)
    assert passes.n_passes > quiet.n_passes


def test_what_was_disturbed_is_what_took_much_longer() -> None:
    assert undisturbed([3.0]) == [3.0] and undisturbed([1.0, 1.1, 0.9, 1.2]) == [1.0, 1.1, 0.9, 1.2]
    assert undisturbed([5.0, 1.0, 9.0, 1.1, 7.0, 1.2]) == [1.0, 1.1, 1.2]
    assert undisturbed_median([5.0, 1.0, 9.0, 1.1, 7.0, 1.2]) == 1.1
    quiet = random.Random(0)
    times = [quiet.lognormvariate(0.0, 0.05) for _ in range(1000)]
    assert undisturbed(times) == times


def test_a_machine_that_stays_busy_is_given_up_and_said() -> None:
    passes = MadeUp(lambda rng, n: rng.uniform(1.0, 10.0))
    profile = measured(passes, seconds=1e9)
    quiet = MadeUp()
    measured(quiet)
    # However much time there is: more of the same would tell no more.
    assert quiet.n_passes < passes.n_passes < 4 * quiet.n_passes
    [shape] = profile.shapes
    assert shape.unsteady and {point[0] for point in shape.unsteady} <= {"prefill", "dynamic", "decode"}
    uncertain, off = profile.doubts()
    assert uncertain.startswith("predictions at 1 x 100 tokens are uncertain by ")
    assert off.startswith("predictions at 1 x 100 tokens were off by ")


# Blocks vary by a tenth, whole passes by a fifth.
def restless(rng: random.Random, n: int) -> float:
    return rng.lognormvariate(0.0, 0.1) * random.Random(n).lognormvariate(0.0, 0.2)


NOISES: dict[str, Noise] = {
    "none": lambda rng, n: 1.0,
    "restless": restless,
    "busy": lambda rng, n: rng.uniform(1.0, 10.0),
}


@given(st.floats(1e-3, 30.0), st.sampled_from(sorted(NOISES)), st.integers(0, 2**16))
def test_whenever_time_is_up_there_is_a_profile(seconds: float, noise: str, seed: int) -> None:
    passes = MadeUp(NOISES[noise])
    passes.rng.seed(seed)
    done: list[float] = []
    shape = profile_shape(
        passes, MADE_UP_KINDS, 1, LENGTH, lambda share, note: done.append(share), seconds, passes.timer
    )
    # A pass to warm up, four and two kept counts, and two comparisons are the least.
    fewest_s = passes.pass_s * (1 + 4 + 2 + 2)
    assert 0 < shape.seconds <= max(seconds, fewest_s + 3 * passes.pass_s) + 1e-9
    assert set(shape.kept) >= {5, 50, 99, 100} and len(shape.held) >= 2
    assert math.isfinite(shape.uncertainty)
    profile = LatencyProfile((shape,), MADE_UP_KINDS, ("0", "1-5"), CONDITIONS)
    assert all(math.isfinite(error) for error in errors(passes, profile, 5))
    assert profile.decode_ms(SparsitySchedule([0.5] * N_MADE_UP), decoded=5) > 0
    assert done == sorted(done) and done[0] > 0 and done[-1] == 1.0


def test_a_model_whose_passes_take_longer_than_there_is_time_is_run_a_few_times() -> None:
    notes: list[tuple[float, str]] = []
    passes = MadeUp(pass_s=100.0)
    shape = profile_shape(
        passes, MADE_UP_KINDS, 1, LENGTH, lambda *told: notes.append(told), seconds=60.0, timer=passes.timer
    )
    assert (passes.n_passes, passes.n_whole) == (1 + 4 + 2, 2)
    assert shape.kept == (5, 50, 99, 100)
    # It shows how far it is, pass by pass, by the passes that are due.
    assert [round(share, 2) for share, _ in notes[3:9]] == [round(n / 9, 2) for n in range(4, 9)] + [0.99]
    assert worst_error(passes, LatencyProfile((shape,), MADE_UP_KINDS, ("0", "1-5"), CONDITIONS)) < 0.05


def test_more_time_leaves_less_uncertain() -> None:
    found = []
    for seconds in (1.5, 3.0, 30.0):
        passes = MadeUp(lambda rng, n: rng.lognormvariate(0.0, 0.15))
        found.append(measured(passes, seconds).shapes[0])
    kept, unsure = [len(shape.kept) for shape in found], [shape.uncertainty for shape in found]
    assert kept == sorted(kept) and kept[-1] == 13
    assert unsure[-1] < unsure[0]


@pytest.mark.parametrize("seconds", [2.0, 6.0, 60.0])
def test_predictions_are_about_as_certain_as_they_say(seconds: float) -> None:
    within: list[bool] = []
    for seed in range(20):
        passes = MadeUp(restless)
        passes.rng.seed(seed)
        profile = measured(passes, seconds)
        within += [error <= profile.uncertainty for error in errors(passes, profile, 10)]
    assert sum(within) / len(within) >= 0.9


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan])
def test_no_time_at_all_is_refused(seconds: float) -> None:
    with pytest.raises(ProfileError, match="no time to profile latency in"):
        profile_latency(SkippingModel(tiny()), [(1, 8)], seconds=seconds)


def test_a_machine_that_was_busy_all_the_time_is_found_out_by_the_comparison() -> None:
    # Steady, but twice as slow as afterwards: nothing varies.
    profile = measured(MadeUp(lambda rng, n: 2.0, drift=1.0))
    assert profile.shapes[0].unsteady == ()
    assert profile.check_error == pytest.approx(0.9, abs=0.15)
    assert profile.uncertainty > 0.9
    assert profile.doubts()[-1].startswith("predictions at 1 x 100 tokens were off by")


def test_processes_that_wait_for_a_core_raise_doubts() -> None:
    shape = replace(RICH.shapes[0], waited=0.4, unsteady=())
    assert replace(RICH, shapes=(shape,)).doubts() == (
        "processes waited for a core during 40% of the time at 1 x 40 tokens",
    )
    waited_us, seconds = iter([1_000_000, 3_500_000]), iter([10.0, 20.0])
    assert Contention(lambda: next(waited_us), lambda: next(seconds)).share() == 0.25
    assert Contention(lambda: None).share() is None


def test_waiting_is_read_where_linux_counts_it(tmp_path: Path) -> None:
    file = tmp_path / "cpu"
    assert pressure_us(file) is None
    file.write_text("some avg10=0.00 avg60=0.10 avg300=0.20 total=123456\nfull avg10=0.00 avg60=0.00 total=0\n")
    assert pressure_us(file) == 123456
    file.write_text("")
    assert pressure_us(file) is None


def test_blocks_of_one_shape_and_window_are_timed_together_but_for_the_first() -> None:
    assert block_kinds(SkippingModel(tiny())) == ((0, 1, 1), ("0", "1-2"))
    assert block_kinds(SkippingModel(tiny("gemma2"))) == ((0, 1, 2), ("0, window 6", "1", "2, window 6"))
    assert block_kinds(SkippingModel(tiny("mistral-sliding"))) == ((0, 1, 1), ("0, window 5", "1-2, window 5"))


class Ticks:
    """A timer that moves on by one second whenever it is asked."""

    def __init__(self) -> None:
        self._ticks = itertools.count()

    def __call__(self) -> float:
        return float(next(self._ticks))


def test_blocks_and_decisions_are_timed_where_they_happen() -> None:
    passes = TimedPasses(SkippingModel(tiny()), 2, 20, Timeline(Ticks()))
    # Each block asks for the time twice, each decision once more before and after.
    static = passes.prefill(SparsitySchedule([0.0, 0.5, 0.0]), dynamic=False)
    assert static == PassTimes(9000.0, (1000.0, 3000.0, 1000.0), (None, 1000.0, None))
    assert static.fixed_ms == 4000.0
    dynamic = passes.prefill(SparsitySchedule([0.5, 0.5, 0.95]), dynamic=True)
    assert dynamic.block_ms == (3000.0,) * 3 and dynamic.keep_ms == (1000.0,) * 3
    assert passes.decode() == [PassTimes(7000.0, (1000.0,) * 3, (None,) * 3)] * DECODED
    assert passes.whole_ms(SparsitySchedule([0.5] * 3), dynamic=True) == 1000.0
    # By this clock all decisions take the same time.
    assert passes.one_pass_ms() == (0.0, 0.0)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_measured_profile_covers_all_schedules_and_routers(family: str) -> None:
    model = SkippingModel(tiny(family))
    shapes = [(2, 40), (1, CONTEXT)]
    counted: list[float] = []
    profile = profile_latency(model, shapes, lambda done, note: counted.append(done), Timeline(Ticks()))
    assert counted == sorted(counted) and 1.0 in counted and counted[-1] == 2.0
    assert [(shape.batch, shape.length) for shape in profile.shapes] == [(1, CONTEXT), (2, 40)]
    assert profile.conditions == profile_conditions(model) and len(profile.blocks) == N_BLOCKS
    for shape in profile.shapes:
        assert shape.kept == tuple(sorted(set(shape.kept))) and shape.kept[-2:] == (shape.length - 1, shape.length)
        assert shape.measured_at.endswith("+00:00")
        for level in range(20):
            schedule = SparsitySchedule.from_grid_indices([level] * N_BLOCKS)
            # Blocks that decide ask for the time more often, as above; listening does not.
            expected = 1000.0 * (1 + N_BLOCKS + N_BLOCKS * (3 if level else 1))
            for router in ("static", "dynamic", "one-pass"):
                where = {"batch": shape.batch, "length": shape.length}
                assert profile.predict_ms(schedule, router=router, **where) == pytest.approx(expected)
                assert profile.decode_ms(schedule, **where) == pytest.approx(7000.0)
            halves = SparsitySchedule.of_halves([0.05 * level] * N_BLOCKS, [0.3] * N_BLOCKS, True)
            expected = 1000.0 * (1 + N_BLOCKS + N_BLOCKS * (5 if level else 3))
            assert profile.predict_ms(halves, **where) == pytest.approx(expected)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_inputs_have_fewer_kept_counts(length: int) -> None:
    profile = profile_latency(SkippingModel(tiny()), [(1, length)], timeline=Timeline(Ticks()))
    assert profile.shapes[0].kept == tuple(range(min(2, length), length + 1))
    for sparsity in (0.0, 0.5, 0.95):
        assert profile.predict_ms(SparsitySchedule([sparsity] * N_BLOCKS), router="dynamic") > 0


def test_a_length_beyond_the_context_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(DataError, match=str(CONTEXT)):
        profile_latency(SkippingModel(tiny()), [(1, 16), (1, CONTEXT + 1)])
