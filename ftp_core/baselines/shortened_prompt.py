"""The shortened prompt: the same tokens skip every block, as if they had been taken out of the prompt before the first.

What does not beat it is worth nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ftp_core.baselines.fitting import Effort, closest, kept_counts, share_kept
from ftp_core.baselines.protocol import Budget, Sparsity
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.cost.flops import FlopsCounter
from ftp_core.routers import Router, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample


class ShortenedPrompt:
    """Keeps the first token and the most recent ones, the same in every block; positions stay those of the full prompt.

    The number of kept tokens is the one whose operations come closest to the budget at its length; at other lengths it
    is the same share of them, 5 % at least.
    """

    name = "shortened_prompt"
    paper = ""
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
        """See `Baseline`; no example is looked at."""
        pruned = uniformly_pruned(self.name, model, budget, StaticRouter())
        on_step(1.0)
        return pruned


def uniformly_pruned(name: str, model: SkippingModel, budget: Budget, router: Router) -> ScheduledModel:
    """The model of which a router keeps equally many tokens in every block, as many as come closest to the budget."""
    effort, counter, length = Effort(model), FlopsCounter(model), budget.length

    def schedule_of(n_kept: int) -> SparsitySchedule:
        return SparsitySchedule.uniform(share_kept(n_kept, length), model.n_blocks)

    n_kept = closest(
        kept_counts(length),
        lambda count: counter.count(schedule_of(count), budget.batch, length, router=router).total,
        budget.target_flops(model),
    )
    removed = Sparsity(1.0 - n_kept / length, "of the prompt's tokens removed")
    return ScheduledModel(name, model, model, schedule_of(n_kept), removed, effort.preparation(), router)
