"""What a user waits for, prompt and new tokens, is timed to the token, on what `generate` runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftp_core.cost.end_to_end import room_for_new_tokens, time_generation
from ftp_core.cost.measure import Skipping, Step, Unchanged, Variant
from ftp_core.errors import DataError, ScheduleError
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.tiny_models import CONTEXT, VOCABULARY, fresh_tiny, tiny

SCHEDULE = SparsitySchedule([0.2, 0.5, 0.7])
IDS = torch.arange(3, 43).view(2, 20)


@dataclass
class Costly:
    """A variant that takes a known time for prompts and for every decoded token, in seconds of its own clock."""

    name: str
    clock: list[float]
    prompt_s: float
    token_s: float

    def step_of(self, model: PreTrainedModel) -> Step:
        def step(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
            self.clock[0] += self.prompt_s if cache is None else self.token_s
            return torch.zeros(len(ids), VOCABULARY), "cache"

        return step


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
        SkippingModel(fresh_tiny()), IDS, variants, [16, 1, 4, 4], repeats=3, timer=lambda: clock[0]
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
        IDS,
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
    generated = own.generate(IDS, **length, do_sample=False, eos_token_id=None)[:, IDS.shape[1] :]
    variant = Recorded(Skipping("pruned", SCHEDULE, router) if pruned else Unchanged())
    time_generation(SkippingModel(dense), IDS, [variant], [1, new_tokens], repeats=1)
    # Once to warm up, once in earnest; the last new token runs through the model no more.
    assert len(variant.ran) == 2 * new_tokens
    for ran, came_next in ((variant.ran[part:][:new_tokens], variant.came_next[part:]) for part in (0, new_tokens)):
        assert torch.equal(ran[0], IDS)
        assert torch.equal(torch.cat([IDS[:, :0], *ran[1:]], 1), generated[:, :-1])
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
            time_generation(model, IDS, [Unchanged()], new_tokens)
    with pytest.raises(DataError, match="at least one token of a prompt"):
        time_generation(model, IDS[:, :0], [Unchanged()], [1])
    untouched = Recorded(Unchanged())
    with pytest.raises(ScheduleError):
        time_generation(model, IDS, [untouched, Skipping("short", SparsitySchedule([0.5]))], [1])
    assert not untouched.ran
