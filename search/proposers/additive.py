"""Proposals from a model in which every gene raises the KL by itself, or together with those behind it."""

from __future__ import annotations

import math
import random

import numpy as np

from search.problem.gene_costs import CostSums, Counts, Floats
from search.problem.initial_design import ablated
from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices, Proposal
from search.proposers.exchange import descended
from search.proposers.harm_model import Curves, HarmModel, Posterior
from search.proposers.interactions import HarmTogether
from search.proposers.knapsack import least_harm, least_harm_within
from search.proposers.seeded import SeededProposer, draw_seed
from studies import Trial
from studies.records.trial import ABLATION

# Own trials for which it leads, once ablations are known; and, at a target, for which after its last success.
_LEADS_FOR = 8
# Times that failures may halve how far from the best its proposals are.
_MOST_HALVED = 5
# Most trials that the model is fitted to.
_MOST_TOLD = 400
# Highest overall sparsity without a target: models are ruined long before.
_MOST_OVERALL = 0.8
# Share of the proposals that are the best by what is most likely; others are the best by what may be.
_SURE = 0.5
# Standard deviations of what is known by which those others differ from the most likely.
_SPREAD = 0.5
# Best known schedules from which exchanges begin.
_STARTS = 2
# Times that the way from the best known schedules is halved for every other solution, these brought to the target; how
# the KL is expected to grow with what a schedule saves, and the least share of what is to be saved that these save.
_NEAR, _GROWTH, _LEAST_SAVED = 2, 1.5, 0.5
# Solutions differ by at least this share of the steps that they skip; draws for each until one does.
_APART, _MOST_DRAWS = 0.1, 6
# Fractional parts of its multiples are spread evenly over [0, 1], however many there are.
_GOLDEN = (math.sqrt(5) - 1) / 2


class AdditiveProposer(SeededProposer):
    """Fits how the KL grows with what each gene skips (`HarmModel`), and proposes what harms least at the cost asked.

    What it does not know from ablations or from other schedules, it expects from depth: late blocks are less sensitive
    than early ones. Half of the proposals are best by the most likely curves, the others by curves drawn from the
    posterior (Thompson sampling, Thompson 1933), so that genes of which little is known get their turn. What is best by
    the sum is found exactly (`search.proposers.knapsack`), at the target, be it overall sparsity or a cost that adds up
    over genes, or at an overall sparsity that is drawn evenly. From there, and from the best schedules that are known,
    exchanges between genes lead to what is best with what genes do together (`search.proposers.interactions`).

    Unlike a local search, it learns from all trials at once which blocks must not skip. But where its own proposals
    fail, sums say little of what genes do together: then exchanges begin at the best schedule alone, and with every
    failure they go half as far, with every success twice as far (a trust region, as in TuRBO, arXiv 1910.01739).

    Args:
        space: Space of schedules.
        seed: Seed of all random choices.
    """

    _most_repeats = math.inf

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        super().__init__("additive", space, seed)
        self._offset = random.Random(f"{self.name}/{seed}").random()
        blocks = np.array([space.genes.blocks[gene] for gene in space.free_genes])
        # Tokens that skip a block with its keys and values are gone, if they skip all of those behind it, too.
        is_nested = space.granularity == "block" and space.kv == "drop"
        self._model = HarmModel(blocks / max(1, space.n_blocks - 1), blocks, is_nested)
        self._told: dict[GridIndices, tuple[float, bool]] = {}
        self._posterior: Posterior | None = None
        self._n_ablated = self._n_since = self._n_halved = 0
        self._least = math.inf

    @property
    def leads(self) -> bool:
        """See `Proposer.leads`: from its first ablation on, until some of what follows from them was evaluated.

        At a target, it leads until so many of its trials in a row were no better than the best.
        """
        return bool(self._n_ablated) and self._n_since < _LEADS_FOR

    def tell(self, trial: Trial) -> None:
        """See `Proposer.tell`."""
        indices = self._space.grid_indices(trial.schedule)
        if trial.values is None or not trial.is_finite or (kl := trial.values[0]) < 0 or not any(indices):
            return
        if len(indices) != self._space.n_genes or max(indices) > self._space.top:
            return
        is_best = self._space.has_target and trial.is_comparable and trial.fidelity == 1.0 and kl < self._least
        if is_best:
            self._least = kl
        if trial.proposer == self.name:
            self._n_since = 0 if is_best else self._n_since + 1
            self._n_halved = min(_MOST_HALVED, max(0, self._n_halved + (-1 if is_best else 1)))
        is_ablation = trial.proposer == ABLATION or not self._space.contains(indices)
        self._n_ablated += is_ablation and bool(ablated(self._space, indices))
        self._told.pop(indices, None)
        self._told[indices] = kl, trial.fidelity < 1.0
        self._posterior = None

    def solutions(self, n: int) -> list[GridIndices]:
        """The schedules with the least KL at the target by the most likely model, and by others that may be true.

        The first and every other one is near the best known schedule, brought to the target by more of the same: about
        what lies further away, the model may be wrong. Each differs from those before by a tenth of what it skips; if
        no other such is found, there are fewer than asked for.

        Args:
            n: Most schedules.
        """
        posterior, rng = self._known(), random.Random(f"{self.name}/{self._seed}/solutions")
        draws = np.random.default_rng(draw_seed(rng))
        found: list[GridIndices] = []
        for draw in range(_MOST_DRAWS * n):
            # The longer none is found, the further away.
            curves = posterior.draw(draws, _SPREAD * (1 + 0.3 * (draw // n))) if draw else posterior.best
            n_halved = 0 if draw % 2 else _NEAR
            best = self._best(curves, self._total(draw, rng), draws, not draw, n_halved)
            if best is None:
                continue
            indices = self._repaired(best, rng).grid_indices
            apart = max(1.0, _APART * sum(indices))
            if all(sum(abs(a - b) for a, b in zip(indices, one, strict=True)) >= apart for one in found):
                found.append(indices)
            if len(found) == n:
                break
        return found

    def _propose(self, number: int, rng: random.Random) -> Proposal | None:
        posterior, draws = self._known(), np.random.default_rng(draw_seed(rng))
        # Asked again for the same trial, the first answer is known already: look further away.
        is_sure = not self._repeats and rng.random() < _SURE
        curves = posterior.best if is_sure else posterior.draw(draws, _SPREAD * (1 + 0.3 * self._repeats))
        found = self._best(curves, self._total(number, rng), draws, is_sure, self._n_halved)
        return None if found is None else self._repaired(found, rng)

    def _best(
        self, curves: Curves, total: int, draws: np.random.Generator, is_sure: bool, n_halved: int = 0
    ) -> list[int] | None:
        """Indices with the least harm by curves and interactions, be these the most likely or drawn.

        Args:
            curves: Curves of the genes.
            total: Steps of all genes together, without a target cost.
            draws: Generator of exchanges and interactions.
            is_sure: Whether interactions are the most likely ones.
            n_halved: Number of times that the way from the best known schedules was halved; 0 for any way.
        """
        sparsities = self._space.grid.sparsities(np.arange(self._space.top + 1.0))
        harms, relief = curves.harms(sparsities), curves.relief(sparsities)
        found = self._least_harm(harms, relief, total)
        if found is None:
            return None
        known = [(self._space.of_free_genes(one), kl) for one, (kl, is_part) in self._told.items() if not is_part]
        if known := known[-_MOST_TOLD:]:
            known_TN, kl_T = np.array([one for one, _ in known]), np.array([kl for _, kl in known])
            harm = HarmTogether(harms, relief, known_TN, kl_T, None if is_sure else draws)
            costs, most = self._costs(sum(found))
            starts, reach = [np.array(found)], math.inf
            if self._space.has_target:
                best = _brought_to(known_TN, kl_T, costs, most)
                if n_halved and best:
                    starts, reach = best[:1], 2 * int(best[0].sum()) / 2**n_halved
                else:
                    starts += best
            ends = [descended(start, harm, costs, most, draws, reach) for start in starts]
            found = min(ends, key=lambda end: float(harm(end[None])[0])).tolist()
        return found

    def _known(self) -> Posterior:
        if self._posterior is None:
            told = list(self._told.items())
            if len(told) > _MOST_TOLD:
                # Those that harm little are what is asked for.
                told = (
                    sorted(told[: -_MOST_TOLD // 2], key=lambda one: one[1][0])[: _MOST_TOLD // 2]
                    + told[-_MOST_TOLD // 2 :]
                )
            shape = len(told), len(self._space.free_genes)
            indices = np.array([self._space.of_free_genes(one) for one, _ in told], dtype=np.float64).reshape(shape)
            kl = np.array([one for _, (one, _) in told])
            is_part = np.array([part for _, (_, part) in told], dtype=bool)
            self._posterior = self._model.fit(self._space.grid.sparsities(indices), kl, is_part)
        return self._posterior

    def _total(self, number: int, rng: random.Random) -> int:
        space = self._space
        total = space.target_total
        if total is None:
            share = (self._offset + number * _GOLDEN) % 1.0 if not self._repeats else rng.random()
            total = round(space.grid.position(share * _MOST_OVERALL) * space.n_genes)
        return min(total, space.top * len(space.free_genes))

    def _least_harm(self, harms: Floats, relief: Floats | None, total: int) -> list[int] | None:
        if self._space.target_limit is not None:
            return least_harm_within(harms, *self._costs(total), relief)
        return least_harm(harms, np.tile(np.arange(self._space.top + 1), (len(harms), 1)), total, relief)

    def _costs(self, total: int) -> tuple[CostSums, float]:
        """Changes of the cost by free genes, and the most that they may add up to."""
        space = self._space
        if (limit := space.target_limit) is not None:
            costs = space.costs[space.limits.index(limit)]
            return costs.sums.taken(space.free_genes), limit.most - costs.base
        return CostSums(np.tile(-np.arange(space.top + 1.0), (len(space.free_genes), 1))), -float(total)


def _brought_to(known_TN: Counts, kl_T: Floats, costs: CostSums, most: float) -> list[Counts]:
    """The best known schedules, those that cost more than a limit by more of the same.

    Args:
        known_TN: Indices of known schedules.
        kl_T: KL of each.
        costs: Changes of the cost by genes.
        most: The most that they may add up to.
    """
    saved_T, needed, top = -costs.of_each(known_TN), -most, costs.alone.shape[1] - 1
    # Those that save more than needed are legal as they are.
    expected_T = kl_T * np.maximum(1.0, needed / np.maximum(saved_T, 1e-12)) ** _GROWTH
    enough = np.flatnonzero(saved_T >= _LEAST_SAVED * needed - 1e-9 * abs(most))
    brought = []
    for place in enough[np.argsort(expected_T[enough], kind="stable")][:_STARTS]:
        for share in np.arange(1.0, 1 / _LEAST_SAVED + 2, 0.02):
            more = np.minimum(np.ceil(share * known_TN[place] - 1e-9), top).astype(known_TN.dtype)
            if costs.of(more) <= most + 1e-9 * abs(most):
                brought.append(more)
                break
    return brought
