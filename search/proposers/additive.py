"""Proposals from a model in which every block raises the KL by itself."""

from __future__ import annotations

import math
import random

import numpy as np
from numpy.typing import NDArray

from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices, Proposal
from search.proposers.seeded import SeededProposer, draw_seed
from studies import Trial
from studies.pareto import KL_FLOOR

# Penalty of the squared weights, in units of the noise.
_RIDGE = 1.0
# Trials told before the model proposes; where ablations are known, trials that are neither those nor uniform.
_FIRST = 12
# Standard deviation of the logarithm of sensitivities that ablations tell.
_DOUBT = 0.5
# Highest overall sparsity without a target: models are ruined long before.
_MOST_OVERALL = 0.8
# Fractional parts of its multiples are spread evenly over [0, 1], however many there are.
_GOLDEN = (math.sqrt(5) - 1) / 2


class AdditiveProposer(SeededProposer):
    """Draws a model of log(KL + 0.02) as a sum over blocks, and proposes the schedule that is best by it.

    Each block adds w_i x + v_i x^2 for its sparsity x, as a share of the highest. The weights have a Gaussian posterior
    (Bayesian linear regression with a ridge); each proposal draws weights from it (Thompson sampling, Thompson 1933),
    so that blocks of which little is known get their turn. What is then best at an overall sparsity is found exactly,
    by dynamic programming over blocks.

    The model says nothing before it knows some schedules. Until then proposals are the best by how sensitive the model
    is to single blocks, as far as outcomes of ablations (`ScheduleSpace.ablations`) tell: KL c x^p for KL c of the
    ablation, p drawn from 1 to 2, c by a random factor off. Of blocks that were ablated together each has its part of
    that KL. Where no ablation is known they are random.

    Unlike a local search, it learns from all trials at once which blocks must not skip. It cannot model interactions of
    blocks, which other proposers learn from its proposals.

    Args:
        space: Space of schedules. Without a target the overall sparsity is drawn evenly.
        seed: Seed of all random choices.
    """

    _most_repeats = math.inf

    def __init__(self, space: ScheduleSpace, seed: int) -> None:
        super().__init__("additive", space, seed)
        self._offset = random.Random(f"{self.name}/{seed}").random()
        n_weights = 1 + 2 * len(space.free_genes)
        # Sufficient statistics of the posterior: single trials need not be kept.
        self._n_told = 0
        self._n_telling = 0
        # KL of ablations, by the blocks that were ablated together.
        self._ablated: dict[tuple[int, ...], float] = {}
        self._products: NDArray[np.float64] = np.zeros((n_weights, n_weights))
        self._targets: NDArray[np.float64] = np.zeros(n_weights)
        self._squares = 0.0

    @property
    def leads(self) -> bool:
        """See `Proposer.leads`: from its first ablation on, for as long as schedules follow from these alone."""
        return bool(self._ablated) and self._is_new

    @property
    def _is_new(self) -> bool:
        return (self._n_telling if self._ablated else self._n_told) < _FIRST

    def _propose(self, number: int, rng: random.Random) -> Proposal | None:
        space = self._space
        if self._is_new and not self._ablated:
            return None
        total = space.target_total
        if total is None:
            share = (self._offset + number * _GOLDEN) % 1.0 if self._is_new and not self._repeats else rng.random()
            total = round(share * _MOST_OVERALL * space.n_genes / space.step)
        total = min(total, space.top * len(space.free_genes))
        increases = self._sensitivities(rng) if self._is_new else self._increases(rng)
        return self._repaired(least_sensitive(increases, total), rng)

    def tell(self, trial: Trial) -> None:
        """See `Proposer.tell`."""
        if trial.values is None or not trial.is_finite or (kl := trial.values[0]) < 0:
            return
        indices = self._space.grid_indices(trial.schedule)
        features, target = self._features(indices), math.log(kl + KL_FLOOR)
        self._n_told += 1
        if ablated := self._space.ablated(indices):
            self._ablated[ablated] = kl
        elif len(set(self._space.of_free_genes(indices))) > 1:
            # Uniform schedules do not tell blocks apart.
            self._n_telling += 1
        self._products += np.outer(features, features)
        self._targets += target * features
        self._squares += target * target

    def _features(self, indices: GridIndices) -> NDArray[np.float64]:
        """`[1 + 2 N]` for N free blocks: 1, the shares, their squares."""
        top = max(1, self._space.top)
        share: NDArray[np.float64] = np.array(self._space.of_free_genes(indices)) / top
        return np.concatenate([[1.0], share, share**2])

    def _sensitivities(self, rng: random.Random) -> NDArray[np.float64]:
        """Increase of each free block at each grid index `[N, top + 1]`, guessed from ablations."""
        draws = np.random.default_rng(draw_seed(rng))
        known: dict[int, float] = {}
        # The smaller a group, the more it tells of its blocks.
        for blocks in sorted(self._ablated, key=len, reverse=True):
            known |= dict.fromkeys(blocks, self._ablated[blocks] / len(blocks))
        # What is not known yet may be as bad as the worst that is.
        worst = max(known.values())
        alone = np.array([known.get(block, worst) for block in self._space.free_genes])
        doubt = _DOUBT * (1 + 0.5 * self._repeats)
        alone = np.maximum(alone, 1e-6) * np.exp(doubt * draws.standard_normal(len(alone)))
        share = np.linspace(0.0, 1.0, self._space.top + 1)
        increases: NDArray[np.float64] = alone[:, None] * share ** draws.uniform(1.0, 2.0, (len(alone), 1))
        return increases

    def _increases(self, rng: random.Random) -> NDArray[np.float64]:
        """Increase of each free block at each grid index `[N, top + 1]`, by weights drawn from the posterior."""
        ridge = np.full(len(self._targets), _RIDGE)
        # The mean of all outcomes is no news.
        ridge[0] = 1e-6
        precision = self._products + np.diag(ridge)
        mean = np.linalg.solve(precision, self._targets)
        misfit = float(self._squares - 2 * mean @ self._targets + mean @ self._products @ mean)
        noise = math.sqrt(max(misfit, 0.0) / self._n_told) + 1e-3
        # Asked again for the same trial, the first answer is known already: look further away.
        noise *= 1 + 0.5 * self._repeats
        draw = np.random.default_rng(draw_seed(rng)).standard_normal(len(mean))
        weights = mean + noise * np.linalg.solve(np.linalg.cholesky(precision).T, draw)
        share = np.linspace(0.0, 1.0, self._space.top + 1)
        linear, square = np.split(weights[1:], 2)
        increases: NDArray[np.float64] = linear[:, None] * share + square[:, None] * share**2
        return increases


def least_sensitive(increases: NDArray[np.float64], total: int) -> list[int]:
    """Grid indices of a given sum whose increases add up to the least, exactly.

    Args:
        increases: Increase of each of N blocks at each grid index `[N, L]`.
        total: Sum of the indices, at most N (L - 1).
    """
    n_blocks, n_indices = increases.shape
    # least[t]: of the blocks so far, with indices that sum up to t.
    least = np.full(total + 1, np.inf)
    least[0] = 0.0
    chosen = np.zeros((n_blocks, total + 1), dtype=np.int64)
    for block in range(n_blocks):
        tried = np.full((n_indices, total + 1), np.inf)
        for index in range(min(n_indices, total + 1)):
            tried[index, index:] = least[: total + 1 - index] + increases[block, index]
        chosen[block] = tried.argmin(0)
        least = tried.min(0)
    indices, left = [0] * n_blocks, total
    for block in reversed(range(n_blocks)):
        indices[block] = int(chosen[block, left])
        left -= indices[block]
    return indices
