"""Puzzle: what stands in for each block is chosen by single scores and an exact solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ftp_core.baselines.fitting import Effort, check_halves, text_batches
from ftp_core.baselines.halves import Half, Shrinking, divergence_from_dense, flops_of_halves
from ftp_core.baselines.protocol import Budget
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample
from search.problem.gene_costs import CostSums
from search.proposers.knapsack import least_harm_within


class Puzzle:
    """Keeps each block, or removes its attention, its MLP or both: the choice with the least sum of single scores.

    As in the paper a score is the KL from the dense model where one block alone is another, and a solver finds the
    choice for all blocks within the budget. Its alternatives are those that need no training: what the paper distils
    block by block, fewer key heads and narrower MLPs, and its training of the whole are left out. The solver is the
    knapsack of the searches here, which is exact but for rounding. Scores are of all tokens of the calibration texts.
    """

    name = "puzzle"
    paper = "Puzzle: Distillation-Based NAS for Inference-Optimized LLMs (arXiv 2411.19146)"
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
        alternatives = [((Half(i, 0),), (Half(i, 1),), (Half(i, 0), Half(i, 1))) for i in range(model.n_blocks)]
        flat = [halves for of_block in alternatives for halves in of_block]
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            on_step(done / (len(batches) * len(flat)))

        choice = [0] * model.n_blocks
        if budget.share:
            losses = shrinking.losses(batches, flat, divergence_from_dense, advance)
            # Keeping a block, index 0, costs and harms nothing.
            harms = np.insert(np.maximum(np.reshape(losses, (model.n_blocks, 3)), 0.0), 0, 0.0, axis=1)
            saved = np.reshape([sum(costs[half] for half in halves) for halves in flat], (model.n_blocks, 3))
            changes = np.insert(-saved, 0, 0.0, axis=1)
            found = least_harm_within(harms, CostSums(changes), budget.target_flops(model) - budget.dense_flops(model))
            assert found is not None, "removing everything saves enough"
            choice = found
        on_step(1.0)
        removed = [half for i, index in enumerate(choice) if index for half in alternatives[i][index - 1]]
        return shrinking.pruned(self.name, removed)
