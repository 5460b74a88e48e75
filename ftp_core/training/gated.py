"""The masked computation of training: every token runs every block, behind gates with a straight-through gradient.

Shapes: B rows, L tokens of a row, D hidden width, W queries that are listened to, T completion tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ftp_core.routers import GateRouter, RoutingState, ScoringRouter, StaticRouter
from ftp_core.routers.protocol import needs_hidden
from ftp_core.routers.state import Half
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.attention import AttentionGate
from ftp_core.skipping.interception import BlockCall
from ftp_core.skipping.kept_projections import KeptProjections, kept_projections_of
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample, pad_right
from ftp_core.training.gated_blocks import gated_block, gated_halves, projected_apart
from ftp_core.training.losses import guide_loss, sparsity_loss


@dataclass(frozen=True)
class TrainingBatch:
    """Prompts with their completions behind them, padded right."""

    ids: Tensor  # token ids `[B, L]`
    prompt_lengths: Tensor  # tokens of each prompt `[B]`
    predicts: Tensor  # positions from which a completion token is predicted, bool `[B, L]`
    n_tokens: int  # number of real tokens
    text_lengths: tuple[int, ...]  # tokens that are read of each row, see `PromptBatch`

    @classmethod
    def of(cls, examples: Sequence[EncodedExample], device: torch.device | None = None) -> TrainingBatch:
        """The prompts of some examples with their right continuations."""
        rows = [(*example.prompt, *example.continuations[example.answer]) for example in examples]
        ids_BL = pad_right(rows, 0).to(device)
        lengths_B = torch.tensor([len(example.prompt) for example in examples], device=device)
        totals_B = torch.tensor([len(row) for row in rows], device=device)
        position_L = torch.arange(ids_BL.shape[1], device=device)
        # A completion token is predicted one position before it stands.
        predicts_BL = (position_L >= lengths_B[:, None] - 1) & (position_L < totals_B[:, None] - 1)
        return cls(ids_BL, lengths_B, predicts_BL, sum(map(len, rows)), tuple(len(row) - 1 for row in rows))


class _Decision(NamedTuple):
    """The tokens that run a block, or a half of it."""

    keep: Tensor  # tokens of the prompts that do, bool `[B, L]`
    gate: Tensor  # the same for all tokens, as numbers with a gradient `[B, L]`


@dataclass
class _GatedPass:
    """Handler of the blocks in one gated forward pass."""

    model: SkippingModel
    router: ScoringRouter
    schedule: SparsitySchedule
    state: RoutingState
    symmetric: bool
    checkpoints: bool
    projections: KeptProjections | None
    guides: list[Tensor] = field(default_factory=list)
    sparsities: list[Tensor] = field(default_factory=list)
    gates: list[Tensor] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)

    def __call__(self, index: int, call: BlockCall) -> Tensor:
        """Hidden states behind block `index` `[B, L, D]`, as if closed gates had kept their tokens out."""
        state, entry, hidden_BLD = self.state, self.schedule.blocks[index], call.hidden
        home, device = state.real.device, hidden_BLD.device
        state.block = index
        state.hidden = hidden_BLD.to(home) if needs_hidden(self.router, state) else None
        # Both are decided before either runs, as in inference.
        attention = self._decide(entry.attention, "block" if entry.is_whole else "attention")
        mlp = attention if entry.is_whole else self._decide(entry.mlp, "mlp")
        last_kept = _last_kept(attention.keep, max(1, self.router.window))
        observed_BW, weight_BW = (of.to(device) for of in last_kept)
        window = self.model.family.window(self.model.model.config, index)

        projections = None if self.projections is None else self.projections.of(index)

        def run(hidden_BLD: Tensor, gate_BL: Tensor, mlp_gate_BL: Tensor) -> tuple[Tensor, Tensor]:
            keys_BL = torch.ones_like(gate_BL) if entry.keeps_kv else gate_BL
            gate = AttentionGate(keys_BL, observed_BW, weight_BW, window)
            gates = (gate_BL if entry.attention > 0 else None, mlp_gate_BL if entry.mlp > 0 else None)
            if entry.is_whole:
                behind_BLD = gated_block(self.model, call, hidden_BLD, gate, gates[0])
            else:
                with projected_apart(self.model, call.block, projections, gates[0]):
                    behind_BLD = gated_halves(self.model, index, call, hidden_BLD, gate, *gates)
            assert gate.received is not None
            return behind_BLD, gate.received

        # A replayed block draws nothing at random.
        gates = attention.gate.to(device), mlp.gate.to(device)
        behind_BLD, received_BL = (
            checkpoint(run, hidden_BLD, *gates, use_reentrant=False, preserve_rng_state=False)
            if self.checkpoints
            else run(hidden_BLD, *gates)
        )
        if self.router.window:
            state.observe(received_BL.to(home), state.real if entry.keeps_kv else attention.keep)
        return behind_BLD

    def _decide(self, sparsity: float, half: Half) -> _Decision:
        """Decides which tokens run a block or a half of it, and notes what the losses are computed of."""
        state, home = self.state, self.state.real.device
        gate_BL = torch.ones(state.real.shape, device=home)
        if sparsity == 0:
            return _Decision(state.real, gate_BL)
        state.half = half
        # In bfloat16 many tokens would share a score, and training would decide otherwise than inference does.
        with torch.autocast(home.type, enabled=False):
            scores_BL = self.router.scores(sparsity, state)
            keep_BL, decided_BL = self.router.select(scores_BL, sparsity, state), state.real
            protected_BL = state.protected(sparsity)
            if protected_BL is not None:
                decided_BL = decided_BL & ~protected_BL
            is_gate = isinstance(self.router, GateRouter)
            soft_BL = scores_BL.sigmoid() if is_gate else soft_decision(scores_BL, keep_BL, decided_BL)
            # Straight-through: the hard decision forwards, the soft one's gradient backwards.
            gate_BL = torch.where(decided_BL, keep_BL.to(soft_BL.dtype) + soft_BL - soft_BL.detach(), gate_BL)
            self.guides.append(guide_loss(scores_BL, StaticRouter().keep(sparsity, state), decided_BL))
            # Protected tokens are kept for sure.
            sure_BL = scores_BL if protected_BL is None else scores_BL.masked_fill(protected_BL, torch.inf)
            self.sparsities.append(sparsity_loss(sure_BL, sparsity, state.real, self.symmetric))
            if is_gate:
                self.gates.append(gate_BL)
                self.asked.append(sparsity)
        state.half = "block"
        return _Decision(keep_BL, gate_BL)


def gated_forward(
    model: SkippingModel,
    router: ScoringRouter,
    batch: TrainingBatch,
    schedule: SparsitySchedule,
    symmetric_sparsity: bool = False,
    gradient_checkpointing: bool = False,
    n_blocks: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs a batch under a schedule, with a router that learns.

    Args:
        model: Model, whose weights take no gradient.
        router: Router to train.
        batch: Prompts with completions.
        schedule: Sparsity of each block.
        symmetric_sparsity: See `sparsity_loss`.
        gradient_checkpointing: Compute blocks again in the backward pass, to save memory.
        n_blocks: Number of the first blocks that run; None for all of them.

    Returns:
        Final hidden states from which the completions' tokens are predicted `[T, D]`, row by row; guide loss; sparsity
        loss. The losses are means over what skips: blocks, or halves of them where the schedule tells these apart. The
        sparsity loss of a `GateRouter` is that of its budget.
    """
    state = RoutingState.padded_right(batch.prompt_lengths, batch.ids.shape[1], model.keep_first)
    given = kept_projections_of(model.model)
    projections = None if given is None else given.serving(schedule)
    handler = _GatedPass(model, router, schedule, state, symmetric_sparsity, gradient_checkpointing, projections)
    n_blocks = model.n_blocks if n_blocks is None else n_blocks

    def handle(index: int, call: BlockCall) -> Tensor:
        return handler(index, call) if index < n_blocks else call.hidden

    hidden_BLD = model.run(handle, batch.ids, batch.text_lengths, use_cache=False).to(model.device)
    zero = torch.zeros((), device=hidden_BLD.device)
    guide, sparsity = (torch.stack(of).mean() if of else zero for of in (handler.guides, handler.sparsities))
    if isinstance(router, GateRouter) and handler.gates:
        sparsity = router.budget_loss(torch.stack(handler.gates)[:, state.real], fmean(handler.asked))
    # By numbers, which fake tensors know (`ftp_core.training.memory`).
    predicts_T = batch.predicts.flatten().nonzero()[:, 0]
    return hidden_BLD.flatten(0, 1)[predicts_T], guide, sparsity


def soft_decision(scores_BL: Tensor, keep_BL: Tensor, decided_BL: Tensor) -> Tensor:
    """Sigmoid of each score's distance from the line between kept and skipped tokens `[B, L]`.

    In budget mode a decision depends on how scores compare within the row. The plain sigmoid(z) would saturate
    wherever scores drift up together, and its gradient vanish, though no decision changed.

    Args:
        scores_BL: Router scores z.
        keep_BL: True for kept tokens.
        decided_BL: True for tokens that their scores decide on: real ones that are not protected.
    """
    dropped_BL = decided_BL & ~keep_BL
    lowest_kept_B = scores_BL.masked_fill(~(decided_BL & keep_BL), torch.inf).amin(1)
    highest_dropped_B = scores_BL.masked_fill(~dropped_BL, -torch.inf).amax(1)
    line_B = (lowest_kept_B + torch.where(dropped_BL.any(1), highest_dropped_B, lowest_kept_B)) / 2
    return (scores_BL - line_B[:, None]).sigmoid()


def _last_kept(keep_BL: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Positions of each row's last kept tokens `[B, W]`, and their weights: 0 for fillers where it keeps fewer."""
    order_BW = keep_BL.to(torch.uint8).argsort(dim=1, descending=False, stable=True)[:, -window:]
    return order_BW, keep_BL.gather(1, order_BW).float()
