"""A one-pass router scores a prompt once, and every block decides by what it found there."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ftp_core.errors import ModelError
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import OnePassRouter, RoutingState, StaticRouter
from ftp_core.routers.state import Half
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample, PromptBatch, prompt_batch
from ftp_core.training.calibration import calibrate_thresholds
from ftp_core.training.distillation import distill
from ftp_core.training.distillation_config import DistillationConfig
from tests.ftp_core.routers.test_routers import row_lengths, with_hidden
from tests.ftp_core.tiny_models import N_BLOCKS, tiny

EXAMPLES = [EncodedExample(tuple(range(3 + i, 23 + i)), ((3, 4),), 0, False) for i in range(12)]
SCHEDULE = SparsitySchedule([0.0, 0.5, 0.3])


def drawn(halves: bool = False) -> OnePassRouter:
    router, draw = OnePassRouter(32, N_BLOCKS, halves), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.normal_(generator=draw)
    return router


def slow_score(router: OnePassRouter, state: RoutingState, row: int, token: int, place: int, sparsity: float) -> float:
    """The formula of one token's score, in float64."""
    assert state.hidden is not None
    hidden, length = state.hidden[row, token].double(), int(state.lengths[row])
    inputs = torch.cat([torch.tensor([token / max(1, length - 1)]), hidden / (hidden.square().mean() + 1e-6).sqrt()])
    first, last = router.mlp[0], router.mlp[2]
    of_token = (first.weight.double() @ inputs + first.bias.double()).clamp(min=0)
    of_block = last.weight[place].double()
    return (of_token @ of_block + last.bias[place] - router.sparsity_weight * sparsity).item()


@given(
    lengths=row_lengths,
    block=st.integers(0, N_BLOCKS - 1),
    sparsity=st.sampled_from([0.2, 0.9]),
    seed=st.integers(0, 9),
)
def test_scores_are_their_formula(lengths: list[int], block: int, sparsity: float, seed: int) -> None:
    router, state = drawn(), with_hidden(lengths, seed)
    expected = [[slow_score(router, state, row, j, block, sparsity) for j in range(n)] for row, n in enumerate(lengths)]
    state.block = block
    scores = router.scores(sparsity, state)
    for row, length in enumerate(lengths):
        assert scores[row, :length].tolist() == pytest.approx(expected[row], rel=1e-3, abs=1e-3)


def test_a_block_that_skips_as_a_whole_has_the_mean_of_its_halves() -> None:
    router, scores = drawn(halves=True), dict[Half, Tensor]()
    for half in ("attention", "block", "mlp"):
        state = with_hidden([9, 12], 0)
        state.block, state.half = 1, half
        scores[half] = router.scores(0.3, state)
    torch.testing.assert_close(scores["block"], (scores["attention"] + scores["mlp"]) / 2)
    state = with_hidden([9, 12], 0)
    for half, place in (("attention", 2), ("mlp", 3)):
        assert scores[half][1, 5].item() == pytest.approx(slow_score(router, state, 1, 5, place, 0.3), rel=1e-3)


class Noting(OnePassRouter):
    """Notes the hidden states that it is shown."""

    def scores(self, sparsity: float, state: RoutingState) -> Tensor:
        self.__dict__.setdefault("shown", []).append((state.block, state.hidden))
        return super().scores(sparsity, state)


def test_hidden_states_are_read_before_the_first_block_that_skips_and_never_again() -> None:
    model, router, before = SkippingModel(tiny()), Noting(32, N_BLOCKS), []
    hook = model.blocks[1].register_forward_pre_hook(lambda _, args, kwargs: before.append(args[0]), with_kwargs=True)
    # The hook sees what all tokens are before block 1 if that skips nothing.
    model.prefill(prompt_batch(EXAMPLES[:2]), [0.0, 0.0, 0.5], StaticRouter())
    hook.remove()
    model.prefill(prompt_batch(EXAMPLES[:2]), SCHEDULE, router)
    (first, hidden), (second, nothing) = router.__dict__["shown"]
    assert (first, second) == (1, 2) and nothing is None
    assert torch.equal(hidden, before[0])


def test_a_pass_without_hidden_states_is_an_error() -> None:
    with pytest.raises(ModelError, match="reads hidden states needs them, but this pass brings none"):
        drawn().scores(0.5, RoutingState.padded_right(torch.tensor([4]), 4))


def test_it_starts_from_the_static_decisions_and_keeps_none_that_are_worse() -> None:
    model, router = SkippingModel(tiny()), OnePassRouter(32, N_BLOCKS)
    router.start_as_static()
    held_out, before = QualitySet(model, EXAMPLES[9:]), copy.deepcopy(router.state_dict())
    config = DistillationConfig(steps=4, batch_size=4, evaluate_every=2, lr=0.1)
    result = distill(model, EXAMPLES[:9], SCHEDULE, config, router=router, held_out=held_out)
    static = held_out.evaluate(SCHEDULE, StaticRouter()).kl
    assert result.curves["held_out_kl"][0] == pytest.approx(static, rel=1e-5)
    assert held_out.evaluate(SCHEDULE, result.router).kl == pytest.approx(min(result.curves["held_out_kl"]), rel=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in router.state_dict().items())


def test_every_weight_of_blocks_that_skip_gets_a_gradient() -> None:
    router, state = drawn(), with_hidden([30], 1)
    for block in (1, 2):
        state.block = block
        router.scores(0.5, state).square().mean().backward(retain_graph=True)
    gradient = router.mlp[2].weight.grad
    assert not gradient[0].any() and bool(gradient[1:].any(1).all())
    assert all(bool(parameter.grad.any()) for parameter in router.parameters())


def test_thresholds_meet_the_schedule_on_their_prompts() -> None:
    model, lengths = SkippingModel(tiny()), torch.tensor([40, 30, 20, 35])
    prompts = PromptBatch(torch.randint(3, 50, (4, 40), generator=torch.Generator().manual_seed(0)), lengths)
    router = calibrate_thresholds(model, drawn(), prompts, SCHEDULE)
    kept = model.prefill(prompts, SCHEDULE, router).kept
    total = int(lengths.sum())
    for sparsity, keep in zip(SCHEDULE, kept, strict=True):
        assert int(keep.sum()) == pytest.approx((1 - sparsity) * total, abs=1.5)


def test_decoded_tokens_are_all_kept_and_more_is_refused() -> None:
    ids = torch.tensor([range(13, 33)])
    pruned = FTPForCausalLM.from_dense(tiny(), SCHEDULE, drawn()).eval()
    new = pruned.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    with torch.no_grad():
        # All at once, the prompt's end given: its tokens are routed as before.
        logits = pruned(new, prompt_length=20).logits
    assert torch.equal(logits[:, 19:-1].argmax(-1), new[:, 20:])
    with pytest.raises(ModelError, match="one-pass router cannot route decoded tokens"):
        pruned.decode_sparsity = 0.5
