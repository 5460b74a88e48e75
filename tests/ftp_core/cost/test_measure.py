"""What a user waits for is measured on the models that a user runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftp_core.baselines.shortgpt import BlockRemoval
from ftp_core.cost.measure import (
    Skipping,
    Step,
    Unchanged,
    Variant,
    measure,
    room_for_new_tokens,
    time_generation,
)
from ftp_core.cost.timing import timing_batch
from ftp_core.errors import DataError, ModelError, ScheduleError
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import PromptBatch
from ftp_core.training.calibration import calibrate_thresholds
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.tiny_models import CONTEXT, N_BLOCKS, VOCABULARY, fresh_tiny, tiny

SCHEDULE = SparsitySchedule([0.2, 0.5, 0.7])
PROMPTS = timing_batch([list(range(3, 40))], 3, 20)


@dataclass
class Costly:
    """A variant that takes a known time for prompts and for every new token, in seconds of its own clock."""

    name: str
    clock: list[float]
    prompt_s: float
    token_s: float

    def step_of(self, model: PreTrainedModel) -> Step:
        def step(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
            self.clock[0] += self.prompt_s if cache is None else self.token_s
            return torch.zeros(len(ids), VOCABULARY), "cache"

        return step


def test_first_token_rate_and_end_to_end_are_told_apart() -> None:
    clock = [0.0]
    variants = [Costly("slow", clock, 0.4, 0.02), Costly("fast", clock, 0.1, 0.01)]
    slow, fast = measure(tiny(), PROMPTS, variants, new_tokens=5, repeats=4, timer=lambda: clock[0])
    assert (slow.variant, fast.variant) == ("slow", "fast")
    assert slow.first_token_ms.median == pytest.approx(400)
    assert slow.end_to_end_ms.median == pytest.approx(500)
    assert slow.tokens_per_second is not None
    assert slow.tokens_per_second.median == pytest.approx(3 * 5 / 0.1)
    assert slow.first_token_samples_ms == pytest.approx((400,) * 4)
    assert fast.end_to_end_ms.median == pytest.approx(150)


def test_length_is_input_and_output_and_the_batch_is_always_said() -> None:
    clock = [0.0]
    [one] = measure(tiny(), PROMPTS, [Costly("some", clock, 0.4, 0.02)], new_tokens=5, timer=lambda: clock[0])
    assert (one.batch, one.prompt_tokens, one.new_tokens, one.length) == (3, 20, 5, 25)
    assert str(one) == (
        "some: batch 3, length 25 (20 in, 5 out), first token 400.0 [400.0, 400.0] ms, 150.0 [150.0, 150.0] tokens/s, "
        "end to end 500.0 [500.0, 500.0] ms"
    )


def test_without_new_tokens_the_first_token_is_the_end() -> None:
    clock = [0.0]
    [one] = measure(tiny(), PROMPTS, [Costly("some", clock, 0.4, 0.02)], timer=lambda: clock[0])
    assert one.end_to_end_samples_ms == one.first_token_samples_ms
    assert one.tokens_per_second is None
    assert "tokens/s" not in str(one)


@pytest.mark.parametrize("family", ["llama", "qwen2-sliding", "gemma2", "gpt_neox", "gpt2"])
def test_all_kinds_of_variants_run_on_a_model_and_leave_it_as_it_is(family: str) -> None:
    model, prompts = fresh_tiny(family), timing_batch([list(range(3, 40))], 2, 24)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    router = random_router()
    thresholds = calibrate_thresholds(SkippingModel(tiny(family)), router, prompts, SCHEDULE)
    variants: list[Variant] = [
        Unchanged(),
        Skipping("static", SCHEDULE),
        Skipping("budget", SCHEDULE, router),
        Skipping("threshold", SCHEDULE, thresholds),
        Skipping("routed decoding", SCHEDULE, router, decode_sparsity=0.5),
        BlockRemoval((1,)),
    ]
    runs: list[int] = []
    results = measure(model, prompts, variants, new_tokens=3, repeats=2, on_run=lambda: runs.append(1))
    assert [result.variant for result in results] == [variant.name for variant in variants]
    assert len(runs) == len(variants) * 3
    for result in results:
        assert 0 < result.first_token_ms.low <= result.first_token_ms.high < result.end_to_end_ms.high
        assert (result.device, result.dtype, result.repeats) == ("cpu", "float32", 2)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())


def steps_of(variant: Variant, model: PreTrainedModel, ids: Tensor, n_tokens: int) -> Tensor:
    """Tokens `[B, n]` that the steps of a variant decode."""
    step, tokens = variant.step_of(model), []
    logits, cache = step(ids, None)
    for _ in range(n_tokens):
        tokens.append(logits.argmax(-1, keepdim=True))
        logits, cache = step(tokens[-1], cache)
    return torch.cat(tokens, 1)


@pytest.mark.parametrize("decode_sparsity", [0.0, 0.5])
@torch.inference_mode()
def test_what_is_timed_decodes_what_generate_decodes(decode_sparsity: float) -> None:
    router = random_router()
    pruned = FTPForCausalLM.from_dense(fresh_tiny(), SCHEDULE, router, decode_sparsity=decode_sparsity)
    generated = pruned.generate(PROMPTS.ids, max_new_tokens=6, do_sample=False, eos_token_id=None)[:, 20:]
    skipping = Skipping("budget", SCHEDULE, router, decode_sparsity)
    assert torch.equal(steps_of(skipping, pruned.base, PROMPTS.ids, 6), generated)
    assert torch.equal(steps_of(Unchanged("saved"), pruned, PROMPTS.ids, 6), generated)


@torch.inference_mode()
def test_a_schedule_of_zeros_decodes_what_the_dense_model_does() -> None:
    zeros = Skipping("zeros", SparsitySchedule.uniform(0.0, N_BLOCKS))
    dense = steps_of(Unchanged(), tiny(), PROMPTS.ids, 6)
    assert torch.equal(steps_of(zeros, tiny(), PROMPTS.ids, 6), dense)


def test_a_model_is_measured_as_it_is_unless_variants_are_given() -> None:
    pruned = FTPForCausalLM.from_dense(fresh_tiny(), SCHEDULE)
    [one] = measure(pruned, PROMPTS.ids, repeats=1)
    assert one.variant == "FTPForCausalLM"
    [dense] = measure(SkippingModel(fresh_tiny()), PROMPTS, new_tokens=1, repeats=1)
    assert dense.variant == "LlamaForCausalLM"
    assert dense.length == 21


def test_padded_prompts_are_refused() -> None:
    with pytest.raises(DataError, match="from 2 to 3 tokens"):
        measure(tiny(), PromptBatch(torch.ones(2, 3, dtype=torch.long), torch.tensor([2, 3])))
    with pytest.raises(DataError, match="at least one token"):
        measure(tiny(), torch.ones(2, 0, dtype=torch.long))


@pytest.mark.parametrize("pruned", [False, True])
def test_prompts_and_new_tokens_must_fit_into_the_context(pruned: bool) -> None:
    model = FTPForCausalLM.from_dense(fresh_tiny(), SCHEDULE) if pruned else tiny()
    with pytest.raises(DataError, match="longer than the 128"):
        measure(model, torch.ones(1, CONTEXT, dtype=torch.long), new_tokens=1)
    with pytest.raises(DataError, match="new_tokens is -1"):
        measure(model, PROMPTS, new_tokens=-1)


def test_a_variant_that_does_not_fit_the_model_is_refused_before_anything_is_timed() -> None:
    for variant in (Skipping("short", SparsitySchedule([0.5])), BlockRemoval((7,))):
        with pytest.raises(ScheduleError):
            measure(tiny(), PROMPTS, [Unchanged(), variant])
    with pytest.raises(ModelError):
        measure(FTPForCausalLM.from_dense(fresh_tiny(), SCHEDULE), PROMPTS, [Skipping("twice", SCHEDULE)])


@dataclass
class Recorded:
    """A variant that remembers what it ran, and what came next."""

    variant: Variant
    ran: list[Tensor] = field(default_factory=list)
    came_next: list[Tensor] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.variant.name

    def step_of(self, model: PreTrainedModel) -> Step:
        inner = self.variant.step_of(model)

        def step(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
            logits, after = inner(ids, cache)
            self.ran.append(ids)
            self.came_next.append(logits.argmax(-1, keepdim=True))
            return logits, after

        return step


def test_times_are_until_a_number_of_new_tokens_is_known_the_first_with_the_prefill() -> None:
    clock = [0.0]
    variants = [Costly("dense", clock, 0.4, 0.02), Costly("other", clock, 0.1, 0.01)]
    dense, other = time_generation(
        SkippingModel(fresh_tiny()), PROMPTS.ids, variants, [16, 1, 4, 4], repeats=3, timer=lambda: clock[0]
    )
    assert list(dense) == [1, 4, 16]
    assert dense[1] == pytest.approx((400,) * 3)
    assert dense[4] == pytest.approx((460,) * 3)
    assert dense[16] == pytest.approx((700,) * 3)
    assert other[16] == pytest.approx((250,) * 3)


def test_turns_go_on_as_asked_by_the_times_until_the_last_token() -> None:
    clock, seen = [0.0], []

    def goes_on(times_ms: Any) -> bool:
        seen.append([list(map(round, own)) for own in times_ms])
        return len(times_ms[0]) < 4

    runs: list[int] = []
    variants = [Costly("dense", clock, 0.4, 0.1), Costly("other", clock, 0.1, 0.1)]
    found = time_generation(
        SkippingModel(fresh_tiny()),
        PROMPTS.ids,
        variants,
        [1, 3],
        repeats=2,
        timer=lambda: clock[0],
        on_run=lambda: runs.append(1),
        goes_on=goes_on,
    )
    assert seen == [[[600] * 2, [300] * 2], [[600] * 4, [300] * 4]]
    assert [len(own[1]) for own in found] == [4, 4] and len(runs) == 2 * (1 + 4)


@pytest.mark.parametrize("new_tokens", [1, 2, 7])
@pytest.mark.parametrize("pruned", [False, True])
@torch.inference_mode()
def test_what_is_timed_is_what_generate_does_token_by_token(pruned: bool, new_tokens: int) -> None:
    dense, router = fresh_tiny(), random_router()
    own = FTPForCausalLM.from_dense(fresh_tiny(), SCHEDULE, router) if pruned else dense
    length = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    generated = own.generate(PROMPTS.ids, **length, do_sample=False, eos_token_id=None)[:, PROMPTS.ids.shape[1] :]
    variant = Recorded(Skipping("pruned", SCHEDULE, router) if pruned else Unchanged())
    time_generation(SkippingModel(dense), PROMPTS.ids, [variant], [1, new_tokens], repeats=1)
    # Once to warm up, once in earnest; the last new token runs through the model no more.
    assert len(variant.ran) == 2 * new_tokens
    for ran, came_next in ((variant.ran[part:][:new_tokens], variant.came_next[part:]) for part in (0, new_tokens)):
        assert torch.equal(ran[0], PROMPTS.ids)
        assert torch.equal(torch.cat([PROMPTS.ids[:, :0], *ran[1:]], 1), generated[:, :-1])
        assert torch.equal(torch.cat(came_next[:new_tokens], 1), generated)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "llama"])
def test_all_the_room_of_a_context_can_be_used(family: str) -> None:
    model, ids = SkippingModel(tiny(family)), torch.arange(3, 43).repeat(1, 3)
    room = room_for_new_tokens(120, CONTEXT)
    assert room == 9
    [times] = time_generation(model, ids, [Skipping("static", SCHEDULE)], [room], repeats=1)
    assert list(times) == [9] and times[9][0] > 0
    with pytest.raises(DataError, match="120 tokens and 10 new ones do not fit into the 128"):
        time_generation(model, ids, [Skipping("static", SCHEDULE)], [room + 1], repeats=1)


def test_what_cannot_be_timed_is_refused_before_anything_runs() -> None:
    model = SkippingModel(tiny())
    for new_tokens in ([], [0, 4]):
        with pytest.raises(DataError, match="at least 1"):
            time_generation(model, PROMPTS.ids, [Unchanged()], new_tokens)
    with pytest.raises(DataError, match="at least one token of a prompt"):
        time_generation(model, PROMPTS.ids[:, :0], [Unchanged()], [1])
    untouched = Recorded(Unchanged())
    with pytest.raises(ScheduleError):
        time_generation(model, PROMPTS.ids, [untouched, Skipping("short", SparsitySchedule([0.5]))], [1])
    assert not untouched.ran
