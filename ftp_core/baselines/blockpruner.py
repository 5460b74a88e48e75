"""BlockPruner: greedy removal of attention and MLP halves by the perplexity of what is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ftp_core.baselines.fitting import Effort, check_halves, text_batches
from ftp_core.baselines.halves import Half, Shrinking, flops_of_halves
from ftp_core.baselines.protocol import Budget
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample


class BlockPruner:
    """Removes attention and MLP halves, one after the other: the one without which perplexity is lowest.

    As in the paper perplexity decides anew after each removal, and nothing is trained afterwards. It is that of all
    tokens of the calibration texts but each one's first. A block of which both halves are gone costs nothing; of one
    half the norm before it still runs.
    """

    name = "blockpruner"
    paper = "BlockPruner: Fine-grained Pruning for Large Language Models (arXiv 2406.10594)"
    has_chance = False
    trains = False

    def fit(
        self,
        model: SkippingModel,
        calibration: Sequence[EncodedExample],
        budget: Budget,
        seed: int = 0,
        on_step: Callable[[float], None] = lambda share: None,
    ) -> ScheduledModel:
        """See `Baseline`."""
        check_halves(model, self.name)
        effort, batches = Effort(model), text_batches(model, calibration)
        shrinking, costs = Shrinking(model, effort), flops_of_halves(model, budget)
        removed: list[Half] = []
        left, target = budget.dense_flops(model), budget.target_flops(model)
        to_save = left - target
        # At least one half remains.
        while left > target and len(removed) < 2 * model.n_blocks - 1:
            candidates = [half for half in costs if half not in removed]
            losses = shrinking.losses(batches, [(half,) for half in candidates])
            # Of equal ones the first.
            best = candidates[losses.index(min(losses))]
            after = left - costs[best]
            if abs(after - target) >= abs(left - target):
                break
            shrinking.remove(best)
            removed.append(best)
            left = after
            on_step(min(1.0, 1.0 - (left - target) / to_save))
        on_step(1.0)
        return shrinking.pruned(self.name, removed)
