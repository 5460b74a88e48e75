"""A model of how KL grows with the sparsity of each gene: a sum of curves, fitted to evaluations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.problem.gene_costs import Floats

# Sparsity at which a gene's harm is its scale.
_AT = 0.6
# Added to every KL before logarithms are compared: less than that nobody notices.
_FLOOR = 0.002
# Prior medians of the KL of single blocks at that sparsity: of the first two, and by depth of the others.
_FIRST_KL = (1.0, 0.35)
_DEPTHS, _KL_BY_DEPTH = (0.0, 0.5, 0.75, 1.0), (0.05, 0.03, 0.02, 0.006)
# Standard deviations of the logarithms of scales: of all together, of neighbours together, of each.
_ALL, _SMOOTH, _EACH, _SMOOTHNESS = 1.2, 0.6, 1.0, 0.1
# Power of the sparsity: its prior median, and standard deviations of its logarithm, of all together and of each.
_POWER, _ALL_POWERS, _EACH_POWER = 1.2, 0.25, 0.15
# What of its harm a gene is spared at the first block and what it loses of that up to the last one: prior, deviations.
_SPARED, _SPARED_SD = (0.7, -0.7), (0.35, 0.35)
_MOST_SPARED = 0.98
# Relative noise of KL: on a part of the search set, and on the whole; there misfit of the model may add to it.
_NOISE_OF_PART, _NOISE, _MOST_NOISE = 0.4, 0.12, 0.6
# Steps of a fit, and what is left of a residual beyond which it counts less.
_MOST_STEPS, _OUTLIER = 25, 2.5


@dataclass(frozen=True)
class Curves:
    """KL by what N genes skip: `sum_i c_i (g_i(s_i) - r_i g_i(m_i))` with `g_i(s) = (s / 0.6)^p_i`.

    `m_i` is the lowest sparsity from gene i to the last one. Tokens that skip all of them come back nowhere: what they
    would have missed is read by nobody, which spares a share `r_i` of the harm. With the static router this is why a
    shortened prompt, where the same tokens skip every block, harms far less than single blocks would suggest.

    Attributes:
        scale: c `[N]`.
        power: p `[N]`.
        spared: r `[N]`; 0 where tokens of different genes are not the same.
    """

    scale: Floats
    power: Floats
    spared: Floats

    def harms(self, sparsities: Floats) -> Floats:
        """Harm of each gene at each sparsity `[N, L]`, were none spared."""
        return self.scale[:, None] * (sparsities / _AT) ** self.power[:, None]

    def relief(self, sparsities: Floats) -> Floats | None:
        """Harm that is spared, by the lowest sparsity from there on `[N, L]`; None for nothing."""
        return self.harms(sparsities) * self.spared[:, None] if self.spared.any() else None


class HarmModel:
    """Bayesian fit of `Curves`: a Gaussian prior by depth, and noise of KL that is relative.

    Args:
        depth: Depth of each gene in `[0, 1]`, ascending `[N]`.
        block: Block of each gene `[N]`.
        is_nested: True if tokens that skip one gene skip all that skip more, see `Curves`.
    """

    def __init__(self, depth: Floats, block: NDArray[np.int64], is_nested: bool) -> None:
        n = len(depth)
        self._n, self._depth, self._is_nested = n, depth, is_nested
        scales = np.interp(depth, _DEPTHS, _KL_BY_DEPTH)
        for early, kl in enumerate(_FIRST_KL):
            scales[block == early] = kl
        apart = (depth[:, None] - depth) / _SMOOTHNESS
        of_scales = _ALL**2 + _SMOOTH**2 * np.exp(-(apart**2) / 2) + _EACH**2 * np.eye(n)
        of_powers = _ALL_POWERS**2 + _EACH_POWER**2 * np.eye(n)
        n_spared = 2 if is_nested else 0
        self._mean = np.concatenate([np.log(scales), np.full(n, math.log(_POWER)), _SPARED[:n_spared]])
        self._precision = np.zeros((len(self._mean), len(self._mean)))
        self._precision[:n, :n] = np.linalg.inv(of_scales)
        self._precision[n : 2 * n, n : 2 * n] = np.linalg.inv(of_powers)
        for place in range(n_spared):
            self._precision[2 * n + place, 2 * n + place] = _SPARED_SD[place] ** -2

    @property
    def prior(self) -> Posterior:
        """Distribution of the curves before any evaluation."""
        return Posterior(self, self._mean, _root(self._precision))

    def fit(self, sparsities: Floats, kl: Floats, is_part: NDArray[np.bool_]) -> Posterior:
        """Posterior after T evaluations: the most likely parameters, and their uncertainty (Laplace).

        Gauss-Newton steps from the prior's mean, damped until they help (Levenberg-Marquardt).

        Args:
            sparsities: Sparsity of each gene `[T, N]`.
            kl: Their KL `[T]`.
            is_part: True for KL of a part of the search set `[T]`.
        """
        if not len(kl):
            return self.prior
        shares = np.maximum(sparsities / _AT, 1e-9)
        lowest = np.minimum.accumulate(shares[:, ::-1], axis=1)[:, ::-1]
        wanted = np.log(np.maximum(kl, 0.0) + _FLOOR)
        noise = np.where(is_part, _NOISE_OF_PART, 2 * _NOISE)
        noise = noise + 0.02
        at, damping, weights = self._mean, 1e-3, np.ones(len(kl))
        residuals, slopes = self._residuals(at, shares, lowest, wanted)
        loss = self._loss(at, residuals, noise)
        for step in range(_MOST_STEPS):
            weights = 1 / np.maximum(1.0, np.abs(residuals / noise) / _OUTLIER) / noise**2
            gradient = slopes.T @ (weights * residuals) + self._precision @ (at - self._mean)
            curvature = (slopes.T * weights) @ slopes + self._precision
            moved = at - np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), gradient)
            there, slopes_there = self._residuals(moved, shares, lowest, wanted)
            loss_there = self._loss(moved, there, noise)
            if loss_there < loss:
                gained = loss - loss_there
                at, residuals, slopes, loss, damping = moved, there, slopes_there, loss_there, damping / 5
                if step == _MOST_STEPS // 3:
                    # How well whole evaluations are told says how far to trust what they tell.
                    noise = self._noise(residuals, is_part)
                    loss = self._loss(at, residuals, noise)
                elif gained < 1e-4 * loss:
                    break
            else:
                damping *= 8
                if damping > 1e6:
                    break
        noise = self._noise(residuals, is_part)
        curvature = (slopes.T / noise**2) @ slopes + self._precision
        return Posterior(self, at, _root(curvature))

    def curves(self, parameters: Floats) -> Curves:
        """The curves of parameters `[2 N]`, or `[2 N + 2]` where genes are nested."""
        n = self._n
        spared = np.zeros(n)
        if self._is_nested:
            spared = np.clip(parameters[2 * n] + parameters[2 * n + 1] * self._depth, 0.0, _MOST_SPARED)
        scale, power = np.exp(np.clip(parameters[:n], -16, 4)), np.exp(np.clip(parameters[n : 2 * n], -1.2, 1.6))
        return Curves(scale, power, spared)

    def _noise(self, residuals: Floats, is_part: NDArray[np.bool_]) -> Floats:
        whole = residuals[~is_part]
        own = 1.5 * float(np.median(np.abs(whole))) if len(whole) > 2 else 2 * _NOISE
        return np.where(is_part, _NOISE_OF_PART, min(_MOST_NOISE, max(_NOISE, own)))

    def _loss(self, at: Floats, residuals: Floats, noise: Floats) -> float:
        off, scaled = at - self._mean, np.abs(residuals / noise)
        huber = np.where(scaled <= _OUTLIER, scaled**2 / 2, _OUTLIER * (scaled - _OUTLIER / 2))
        return float(huber.sum() + off @ self._precision @ off / 2)

    def _residuals(self, at: Floats, shares: Floats, lowest: Floats, wanted: Floats) -> tuple[Floats, Floats]:
        """Differences of logarithms `[T]`, and their derivatives by the parameters `[T, 2 N (+ 2)]`."""
        curves = self.curves(at)
        own = curves.scale * shares**curves.power
        spared = curves.scale * lowest**curves.power
        each = own - curves.spared * spared
        kl = np.maximum(each.sum(1), 0.0) + _FLOOR
        by_power = curves.power * (own * np.log(shares) - curves.spared * spared * np.log(lowest))
        slopes = [each, by_power]
        if self._is_nested:
            inside = (curves.spared > 0) & (curves.spared < _MOST_SPARED)
            # Beyond its bounds a share does not move, but may come back.
            part = np.where(inside, spared, 0.1 * spared)
            slopes += [-part.sum(1, keepdims=True), -(part * self._depth).sum(1, keepdims=True)]
        return np.log(kl) - wanted, np.concatenate(slopes, axis=1) / kl[:, None]


@dataclass(frozen=True)
class Posterior:
    """Posterior distribution of the curves.

    Attributes:
        model: Model whose parameters they are.
        mean: Most likely parameters.
        root: Lower Cholesky factor of their precision.
    """

    model: HarmModel
    mean: Floats
    root: Floats

    @property
    def best(self) -> Curves:
        """The most likely curves."""
        return self.model.curves(self.mean)

    def draw(self, rng: np.random.Generator, spread: float = 1.0) -> Curves:
        """Curves that may be true, with so many times the standard deviations of what is known."""
        noise = rng.standard_normal(len(self.mean))
        return self.model.curves(self.mean + spread * np.linalg.solve(self.root.T, noise))


def _root(precision: Floats) -> Floats:
    """Lower Cholesky factor."""
    return np.asarray(np.linalg.cholesky(precision), dtype=np.float64)
