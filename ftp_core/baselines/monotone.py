"""Progressive dropping: tokens of little attention leave the prompt for good, more of them from block to block.

Dimensions: B rows, L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ftp_core.baselines.fitting import Effort, closest
from ftp_core.baselines.protocol import Budget, Sparsity
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.baselines.sanity_rows import last_tokens
from ftp_core.cost.flops import FlopsCounter
from ftp_core.errors import ScheduleError
from ftp_core.routers import RoutingState
from ftp_core.routers.protocol import highest
from ftp_core.routers.scoring import check_window
from ftp_core.schedule import MAX_SPARSITY, SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample

# Shares that a block may keep of the tokens before it, from all to none.
_DECAYS = 1000


class MonotoneRouter:
    """Keeps, of the tokens that ran all blocks before, the last one and those that received most attention there.

    Args:
        schedule: The schedule that it will run under, whose sparsities ascend: no token comes back.
        window: Number of last queries whose attention counts.

    Raises:
        ScheduleError: The schedule lets tokens come back, or tells halves apart.
        ModelError: There is no query in the window.
    """

    kind = "monotone"
    reads_hidden = False
    keeps_budget = True
    routes_decoding = False

    def __init__(self, schedule: SparsitySchedule, window: int = 1) -> None:
        check_window(window)
        if not schedule.is_plain or any(later < earlier for earlier, later in pairwise(schedule)):
            raise ScheduleError(
                f"Under the schedule {schedule} tokens would come back: give one sparsity per block, none lower than "
                "the one before."
            )
        self.window = window

    def keep(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `Router.keep`."""
        scores_BL = state.attention
        if state.memory is not None:
            scores_BL = scores_BL.masked_fill(~state.memory, -1.0)
        state.memory = highest(scores_BL.masked_fill(last_tokens(state), torch.inf), sparsity, state)
        return state.memory

    def keep_newest(self, sparsity: float, state: RoutingState, line: Tensor | None) -> Tensor:
        """See `Router.keep_newest`; never called."""
        return torch.ones_like(state.lengths, dtype=torch.bool)


class Monotone:
    """Drops tokens progressively by the attention that they receive; none returns.

    PoWER-BERT eliminates the word vectors of least significance, the attention received, between any two encoders;
    LazyLLM does so in decoders by the attention of the last token, s_j = mean over heads of A_{L,j}, which is the
    criterion here (more queries with a wider window). PoWER-BERT learns how many stay, and LazyLLM chooses blocks and
    percentiles by hand; here block i keeps r^i of the tokens, 5 % at least, and the budget says r. LazyLLM revives
    dropped tokens from an auxiliary cache while it decodes, and PoWER-BERT trains with the dropping: neither is done.

    Args:
        window: Number of last queries whose attention counts.
    """

    name = "monotone"
    paper = "PoWER-BERT (arXiv 2001.08950) and LazyLLM (arXiv 2407.14057), training-free"
    has_chance = False
    trains = False

    def __init__(self, window: int = 1) -> None:
        check_window(window)
        self._window = window

    def fit(
        self,
        model: SkippingModel,
        calibration: Sequence[EncodedExample],
        budget: Budget,
        seed: int = 0,
        on_step: Callable[[float], None] = lambda share: None,
    ) -> ScheduledModel:
        """See `Baseline`; no example is looked at."""
        effort, counter = Effort(model), FlopsCounter(model)

        def schedule_of(decay: int) -> SparsitySchedule:
            stays = 1.0 - decay / _DECAYS
            return SparsitySchedule([min(MAX_SPARSITY, 1.0 - stays**index) for index in range(model.n_blocks)])

        def flops_of(decay: int) -> float:
            schedule = schedule_of(decay)
            router = MonotoneRouter(schedule, self._window)
            return counter.count(schedule, budget.batch, budget.length, router=router).total

        schedule = schedule_of(closest(range(_DECAYS + 1), flops_of, budget.target_flops(model)))
        on_step(1.0)
        removed = Sparsity(schedule.overall, "of the tokens dropped, mean over blocks")
        router = MonotoneRouter(schedule, self._window)
        return ScheduledModel(self.name, model, model, schedule, removed, effort.preparation(), router)
