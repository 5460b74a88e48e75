"""BlockPruner: greedy removal of attention and MLP halves by the perplexity of what is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from ftp_core.baselines.fitting import Effort, check_halves, check_usable, first_texts, text_batches
from ftp_core.baselines.halves import Half, Shrinking, flops_of_halves
from ftp_core.baselines.protocol import Budget
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.errors import ModelError
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample


class BlockPruner:
    """Removes attention and MLP halves, one after the other: the one without which perplexity is lowest.

    As in the paper perplexity decides anew after each removal, and nothing is trained afterwards. It is that of all
    tokens of the first calibration texts but each one's first: every removal runs them once for each half that is left,
    from its block on, so that all texts would take a CPU hours where blocks are many. A block of which both halves are
    gone costs nothing; of one half the norm before it still runs.

    Args:
        tokens: Tokens of these texts, at least, if there are so many.

    Raises:
        ModelError: That is less than one.
    """

    name = "blockpruner"
    paper = "BlockPruner: Fine-grained Pruning for Large Language Models (arXiv 2406.10594)"
    has_chance = False
    trains = False

    def __init__(self, tokens: int = 2048) -> None:
        if tokens < 1:
            raise ModelError(f"BlockPruner is to decide by {tokens} tokens: give at least one.")
        self._tokens = tokens

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
        check_usable(model, calibration)
        effort, batches = Effort(model), text_batches(model, first_texts(calibration, self._tokens))
        shrinking, costs = Shrinking(model, effort), flops_of_halves(model, budget)
        removed: list[Half] = []
        left, target = budget.dense_flops(model), budget.target_flops(model)
        to_save = left - target
        # At least one half remains.
        while left > target and len(removed) < 2 * model.n_blocks - 1:
            candidates = [half for half in costs if half not in removed]
            # Of the operations still to save, about those that a half saves are known with the last loss.
            begun, gained = 1.0 - (left - target) / to_save, fmean(costs[half] for half in candidates) / to_save
            losses = shrinking.losses(
                batches,
                [(half,) for half in candidates],
                on_loss=_counting(on_step, begun, min(1.0, begun + gained), len(batches) * len(candidates)),
            )
            # Of equal ones the first.
            best = candidates[losses.index(min(losses))]
            after = left - costs[best]
            if abs(after - target) >= abs(left - target):
                break
            shrinking.remove(best)
            removed.append(best)
            left = after
        on_step(1.0)
        return shrinking.pruned(self.name, removed)


def _counting(on_step: Callable[[float], None], start: float, end: float, times: int) -> Callable[[], None]:
    """Tells shares between two in even steps, one each time that it is called."""
    shares = (start + (end - start) * (done + 1) / times for done in range(times))
    return lambda: on_step(next(shares))
