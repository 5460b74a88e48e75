"""The model as training sees it: every token computed, gates with a straight-through gradient in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ftp_core.routers import RoutingState, ScoringRouter, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.attention import AttentionGate, gated_attention
from ftp_core.skipping.interception import BlockCall
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample, pad_right
from ftp_core.training.losses import guide_loss, sparsity_loss


@dataclass(frozen=True)
class TrainingBatch:
    """Prompts with their completions in one right-padded sequence, for the masked computation of training.

    Attributes:
        ids: Token ids `[B, T]`.
        prompt_lengths: Tokens of each prompt `[B]`.
        predicts: Positions from which a completion token is predicted, bool `[B, T]`.
        n_tokens: Real tokens.
        text_lengths: Tokens that are read of each row, see `PromptBatch`.
    """

    ids: Tensor
    prompt_lengths: Tensor
    predicts: Tensor
    n_tokens: int
    text_lengths: tuple[int, ...]

    @classmethod
    def of(cls, examples: Sequence[EncodedExample], device: torch.device | None = None) -> TrainingBatch:
        """The right continuations of some examples behind their prompts."""
        rows = [(*example.prompt, *example.continuations[example.answer]) for example in examples]
        ids = pad_right(rows, 0).to(device)
        lengths = torch.tensor([len(example.prompt) for example in examples], device=device)
        totals = torch.tensor([len(row) for row in rows], device=device)
        position = torch.arange(ids.shape[1], device=device)
        # A completion token is predicted one position before it stands.
        predicts = (position >= lengths[:, None] - 1) & (position < totals[:, None] - 1)
        return cls(ids, lengths, predicts, sum(map(len, rows)), tuple(len(row) - 1 for row in rows))


@dataclass
class _GatedPass:
    """The blocks' handler of one gated forward pass."""

    model: SkippingModel
    router: ScoringRouter
    schedule: SparsitySchedule
    state: RoutingState
    symmetric: bool
    checkpoints: bool
    guides: list[Tensor] = field(default_factory=list)
    sparsities: list[Tensor] = field(default_factory=list)

    def __call__(self, index: int, call: BlockCall) -> Tensor:
        """Hidden states behind block `index` `[B, T, D]`, as if closed gates had kept their tokens out."""
        state, sparsity, hidden = self.state, self.schedule[index], call.hidden
        state.block = index
        if self.router.reads_hidden:
            state.hidden = hidden
        gate = torch.ones(hidden.shape[:2], device=hidden.device)
        keep = state.real
        if sparsity > 0:
            # In bfloat16 many tokens would share a score, and training would decide otherwise than inference does.
            with torch.autocast(hidden.device.type, enabled=False):
                scores = self.router.scores(sparsity, state)
                keep, decided = self.router.select(scores, sparsity, state), state.real
                protected = state.protected(sparsity)
                if protected is not None:
                    decided = decided & ~protected
                soft = soft_decision(scores, keep, decided)
                # Straight-through: the hard decision forwards, the soft one's gradient backwards.
                gate = torch.where(decided, keep.to(soft.dtype) + soft - soft.detach(), gate)
                self.guides.append(guide_loss(scores, StaticRouter().keep(sparsity, state), decided))
                # What is protected is kept for sure.
                sure = scores if protected is None else scores.masked_fill(protected, torch.inf)
                self.sparsities.append(sparsity_loss(sure, sparsity, state.real, self.symmetric))
        observed, weight = _last_kept(keep, max(1, self.router.window))
        window = self.model.family.window(self.model.model.config, index)

        def run(hidden: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
            attention = AttentionGate(gate, observed, weight, window)
            arguments = {self.model.family.cache_argument: None, "attention_mask": None, "gate": attention}
            with gated_attention(self.model.model):
                out = call.run(hidden, **arguments)
            assert attention.received is not None
            return hidden + gate[..., None].to(out.dtype) * (out - hidden) if sparsity > 0 else out, attention.received

        # A replayed block draws nothing at random.
        behind, received = (
            checkpoint(run, hidden, gate, use_reentrant=False, preserve_rng_state=False)
            if self.checkpoints
            else run(hidden, gate)
        )
        if self.router.window:
            state.observe(received, keep)
        return behind


class GatedModel:
    """Computes the losses of a router.

    Args:
        model: The model; its weights take no gradient.
        router: What to train.
        symmetric_sparsity: See `sparsity_loss`.
        gradient_checkpointing: Whether to compute blocks again in the backward pass, to save their memory.
    """

    def __init__(
        self,
        model: SkippingModel,
        router: ScoringRouter,
        symmetric_sparsity: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        self._model = model
        self._router = router
        self._symmetric = symmetric_sparsity
        self._checkpoints = gradient_checkpointing

    def forward(self, batch: TrainingBatch, schedule: SparsitySchedule) -> tuple[Tensor, Tensor, Tensor]:
        """Run a batch under a schedule.

        Returns:
            Logits that predict the completions' tokens `[n, V]`, row by row; guide loss; sparsity loss. The losses are
            means over blocks with s_i > 0.
        """
        state = RoutingState.padded_right(batch.prompt_lengths, batch.ids.shape[1], self._model.keep_first)
        handler = _GatedPass(self._model, self._router, schedule, state, self._symmetric, self._checkpoints)
        hidden = self._model.run(handler, batch.ids, batch.text_lengths, use_cache=False)
        logits = self._model.logits(hidden[batch.predicts])
        zero = torch.zeros((), device=logits.device)
        return (
            logits,
            torch.stack(handler.guides).mean() if handler.guides else zero,
            torch.stack(handler.sparsities).mean() if handler.sparsities else zero,
        )


def soft_decision(scores: Tensor, keep: Tensor, decided: Tensor) -> Tensor:
    """How near each token is to the line between kept and skipped: sigmoid of its distance from there `[B, L]`.

    In budget mode a decision hangs on how scores compare within the row. The plain sigmoid(z) would saturate wherever
    scores drift up together, and its gradient die, though no decision changed.

    Args:
        scores: Router scores z `[B, L]`.
        keep: Who was kept `[B, L]`.
        decided: Tokens that were kept or not by their scores: real ones that are not protected `[B, L]`.
    """
    dropped = decided & ~keep
    lowest_kept = scores.masked_fill(~(decided & keep), torch.inf).amin(1)
    highest_dropped = scores.masked_fill(~dropped, -torch.inf).amax(1)
    line = (lowest_kept + torch.where(dropped.any(1), highest_dropped, lowest_kept)) / 2
    return (scores - line[:, None]).sigmoid()


def _last_kept(keep: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Positions of each row's last `window` kept tokens `[B, W]`, and 0 for fillers where it keeps fewer."""
    order = keep.to(torch.uint8).argsort(dim=1, descending=False, stable=True)[:, -window:]
    return order, keep.gather(1, order).float()
