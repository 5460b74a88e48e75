"""SwiftKV, whose projections learn to make later keys and values from the states that the prompt stops with.

Dimensions: B rows, L tokens of a row, S tokens that stop, D hidden width, K width of a projection.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ftp_core.baselines.fitting import Effort, check_usable, prompt_batches
from ftp_core.baselines.protocol import Budget
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.baselines.sharing import shared_copy
from ftp_core.baselines.swiftkv import LastTokenRouter, SwiftKV
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import RoutingState
from ftp_core.schedule import MAX_SPARSITY
from ftp_core.skipping.interception import BlockCall, replaced_forwards
from ftp_core.skipping.kept_projections import KeptProjections, give_kept_projections
from ftp_core.skipping.norms import MeasuredStates
from ftp_core.skipping.projection_fits import RIDGE, RidgeSums, changed_copies, of_tokens, projected
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample, length_sorted_batches
from ftp_core.training.batch_progress import BatchProgress
from ftp_core.training.distillation import set_aside
from ftp_core.training.distillation_config import DistillationConfig
from ftp_core.training.gated import TrainingBatch
from ftp_core.training.memory import recomputes_blocks
from ftp_core.training.teacher import Lesson, Teacher

_HELD_OUT_BATCH = 16

Projections = Mapping[int, Mapping[str, nn.Module]]
"""By index of the block and name of the projection in its attention."""


class SwiftKVDistilled(SwiftKV):
    """SwiftKV with projections of later blocks that are trained for the states that the prompt stops with.

    K_j = W'_K^j norm_j(x_{l+1}) and V_j = W'_V^j norm_j(x_{l+1}) for all j > l. The paper copies W_Q, W_K and W_V of
    later blocks and distils the copies, all other weights frozen, from the dense model's predictions. Here the copies
    of W_K and W_V are fitted by ridge regression to the keys and values that the dense model has there, and then
    trained by distillation with the number of steps of our routers; those with the lowest KL on the examples set aside
    are kept, of the model's own, the fitted and the trained ones. They serve the tokens that stop and no others: the
    last token of the prompt, and those decoded behind it, run later blocks with the model's own weights on their own
    states, so that W_Q needs no training; in the paper all tokens' later keys come from x_{l+1}. Where a projection
    makes queries, too, a copy of all of it is counted as trained. Without AcrossKV, as `SwiftKV`.

    Args:
        config: Hyperparameters of the training. Its seed says in which order batches come, whatever the seed of a fit.
    """

    name = "swiftkv_distilled"
    trains = True

    def __init__(self, config: DistillationConfig | None = None) -> None:
        # Nothing is routed, so that there is no sparsity to be learnt.
        self._config = config or DistillationConfig(lr=1e-3, w_sparsity=0.0)

    @torch.inference_mode(False)
    def fit(
        self,
        model: SkippingModel,
        calibration: Sequence[EncodedExample],
        budget: Budget,
        seed: int = 0,
        on_step: Callable[[float], None] = lambda share: None,
    ) -> ScheduledModel:
        """See `Baseline`.

        Raises:
            ModelError: Its projections are quantised or not in memory; or see `Baseline`.
            CoreError: There are fewer than two distinct examples, of which some are set aside.
            DataError: See `Baseline`.
        """
        check_usable(model, calibration)
        effort, plain = Effort(model), super().fit(model, calibration, budget)
        n_whole = sum(entry.is_dense for entry in plain.schedule.blocks)
        if n_whole == model.n_blocks:
            on_step(1.0)
            return replace(plain, preparation=effort.preparation())
        pruned = replace(plain, model=shared_copy(model))
        _Training(pruned, n_whole, self._config, effort).run(calibration, on_step)
        return replace(pruned, preparation=effort.preparation())


@dataclass
class _Training:
    """Finds the projections of a pruned model.

    Attributes:
        pruned: The pruned model, whose projections are its own until others are given to it.
        n_whole: Blocks that the whole prompt runs.
        config: See `SwiftKVDistilled`.
        effort: Counts what it takes.
    """

    pruned: ScheduledModel
    n_whole: int
    config: DistillationConfig
    effort: Effort

    def run(self, calibration: Sequence[EncodedExample], on_step: Callable[[float], None]) -> None:
        """Gives the pruned model the best projections found."""
        config, dense = self.config, self.pruned.dense
        data, aside = set_aside(calibration)
        n_passes, n_aside = len(prompt_batches(dense, data)), ceil(len(aside) / _HELD_OUT_BATCH)
        # One more evaluation than a training of routers has.
        n_before = n_passes + ceil(len(data) / config.batch_size) + 2 * n_aside
        progress = BatchProgress(on_step, config, n_before, n_aside)
        held_out = QualitySet(dense, aside, _HELD_OUT_BATCH, progress.advance)
        best, best_kl = None, self._kl(None, held_out, progress)
        fitted = fit_projections(dense, data, self.n_whole, self.effort, progress.advance)
        trained = {index: {name: _wide(part) for name, part in parts.items()} for index, parts in fitted.items()}
        weights = [weight for parts in trained.values() for part in parts.values() for weight in part.parameters()]
        self.effort.trained_parameters = sum(weight.numel() for weight in weights)
        for candidate in self._candidates(trained, weights, data, progress):
            kl = self._kl(candidate, held_out, progress)
            if kl < best_kl:
                best, best_kl = candidate, kl
        give_kept_projections(self.pruned.model.model, best)
        progress.end()

    def _kl(self, projections: KeptProjections | None, held_out: QualitySet, progress: BatchProgress) -> float:
        give_kept_projections(self.pruned.model.model, projections)
        return held_out.evaluate_pruned(self.pruned, on_batch=progress.advance).kl

    def _candidates(
        self, trained: Projections, weights: list[nn.Parameter], data: Sequence[EncodedExample], progress: BatchProgress
    ) -> Any:
        """Yields projections to evaluate: those that training begins with, and what becomes of them now and then."""
        config, dense = self.config, self.pruned.dense
        yield _of_model(trained, dense)
        teacher, lessons = Teacher(dense, config), []
        for examples in length_sorted_batches(data, config.batch_size):
            lessons.append(teacher.lesson(examples))
            progress.advance()
        checkpointing = recomputes_blocks(dense, data, config)
        optimizer = torch.optim.AdamW(weights, weight_decay=0.0)
        draws, order = random.Random(config.seed), list[Lesson]()
        for step in range(config.steps):
            optimizer.param_groups[0]["lr"] = config.lr_at(step)
            optimizer.zero_grad(set_to_none=True)
            for _ in range(config.accumulate):
                order = order or draws.sample(lessons, len(lessons))
                lesson = order.pop()
                hidden_TD = stopped_forward(dense, lesson.batch, self.n_whole, trained, checkpointing)
                loss = config.w_distill * teacher.loss(hidden_TD, lesson) / config.accumulate
                loss.backward()
                self.effort.tokens += lesson.batch.n_tokens
                progress.advance()
            nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
            optimizer.step()
            if (step + 1) % config.evaluate_every == 0 or step + 1 == config.steps:
                yield _of_model(trained, dense)


def _wide(part: nn.Module) -> nn.Module:
    """A projection that learns, in float32."""
    return copy.deepcopy(part).float().requires_grad_(True)


def _of_model(trained: Projections, model: SkippingModel) -> KeptProjections:
    """Copies of projections as they are now, in the precision of a model."""
    copies = {index: {name: copy.deepcopy(part) for name, part in parts.items()} for index, parts in trained.items()}
    return KeptProjections(copies).to(model.model.dtype).requires_grad_(False)


def stopped_forward(
    model: SkippingModel, batch: TrainingBatch, n_whole: int, projections: Projections, checkpointing: bool = False
) -> Tensor:
    """Runs a batch as SwiftKV does, with projections that learn.

    Every token runs every block; what comes of those that have stopped is thrown away.

    Args:
        model: The dense model, whose weights take no gradient.
        batch: Prompts with completions.
        n_whole: Number of the first blocks, which all tokens run.
        projections: Projections of all blocks behind these, in float32.
        checkpointing: Compute later blocks again in the backward pass, to save memory.

    Returns:
        Final hidden states from which the completions' tokens are predicted `[T, D]`, row by row.
    """
    stops_BL = _stops(model, batch.prompt_lengths, batch.ids.shape[1])
    assert model.family.halves is not None
    of_attention = model.family.halves[0]

    def handle(index: int, call: BlockCall) -> Tensor:
        if index < n_whole:
            return call.run(call.hidden)
        names, parts = zip(*projections[index].items(), strict=True)
        stops_BL1 = stops_BL[..., None].to(call.hidden.device)

        def mixed(number: int, module: nn.Module) -> Callable[..., Tensor]:
            own, trained = module.forward, parts[number]
            return lambda hidden: torch.where(stops_BL1, trained(hidden.float()).to(hidden.dtype), own(hidden))

        def run(hidden_BLD: Tensor) -> Tensor:
            attention = call.block.get_submodule(of_attention)
            with replaced_forwards([attention.get_submodule(name) for name in names], mixed):
                return torch.where(stops_BL1, hidden_BLD, call.run(hidden_BLD))

        if checkpointing:
            behind: Tensor = checkpoint(run, call.hidden, use_reentrant=False, preserve_rng_state=False)
            return behind
        return run(call.hidden)

    hidden_BLD = model.run(handle, batch.ids, batch.text_lengths, use_cache=False).to(model.device)
    return hidden_BLD[batch.predicts]


def _stops(model: SkippingModel, prompt_lengths: Tensor, width: int) -> Tensor:
    """Tokens of prompts that stop, bool `[B, L]`."""
    state = RoutingState.padded_right(prompt_lengths, width, model.keep_first)
    return state.real & ~LastTokenRouter().keep(MAX_SPARSITY, state)


@torch.no_grad()
def fit_projections(
    model: SkippingModel,
    examples: Sequence[EncodedExample],
    n_whole: int,
    effort: Effort,
    on_batch: Callable[[], None] = lambda: None,
    ridge: float = RIDGE,
) -> Projections:
    """Fits copies of the projections of later keys and values to the dense model's, from states behind a block.

    For each, the change of its weights that makes sum_t |W' norm_j(x_{l+1,t}) - W norm_j(x_{j,t})|^2 least over the
    tokens of prompts that would stop, with a penalty on the change (ridge regression).

    Args:
        model: The dense model.
        examples: Examples whose prompts are run.
        n_whole: l + 1, the number of the first blocks, which run whole.
        effort: Counts tokens.
        on_batch: Called after each batch.
        ridge: Weight of the penalty, of the mean square of what projections read.

    Raises:
        ModelError: A projection is quantised or not in memory.
    """
    sums = {index: RidgeSums() for index in range(n_whole, model.n_blocks)}
    for prompts in prompt_batches(model, examples):
        prompts = prompts.to(model.device)
        stops_BL = _stops(model, prompts.lengths, prompts.ids.shape[1])
        model.run(partial(_summed, model, sums, stops_BL, []), prompts.ids, use_cache=False)
        effort.tokens += int(prompts.lengths.sum())
        on_batch()
    assert model.family.halves is not None
    of_attention = model.family.halves[0]
    return {
        index: changed_copies(model.blocks[index].get_submodule(of_attention), of_block.changes(ridge))
        for index, of_block in sums.items()
    }


def _summed(
    model: SkippingModel,
    sums: Mapping[int, RidgeSums],
    stops_BL: Tensor,
    states: list[Tensor],
    index: int,
    call: BlockCall,
) -> Tensor:
    """Runs a block of the dense model, and adds what its projections are to learn; `states` begin empty."""
    if index not in sums:
        return call.run(call.hidden)
    if not states:
        states.append(call.hidden.contiguous())
    stops_BL = stops_BL.to(call.hidden.device)
    found = projected(call, model.family, MeasuredStates(states[0].to(call.hidden.device)))
    own = projected(call, model.family, MeasuredStates(call.hidden.contiguous()))
    sums[index].add(of_tokens(found, stops_BL), {name: one.made[stops_BL] for name, one in own.items()})
    return call.run(call.hidden)
