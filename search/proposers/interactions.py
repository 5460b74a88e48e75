"""Interactions of genes beyond the sum of their harms: a quadratic form, fitted to the residuals of the sum."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from search.problem.gene_costs import Counts, Floats

# Standard deviations of single interactions that evidence chooses from, and of what is left unexplained.
_SCALES, _NOISE = (0.01, 0.03, 0.06, 0.12, 0.25), 0.04
# Added to KL and harm before logarithms are compared: less than that nobody notices.
_FLOOR = 0.002


class HarmTogether:
    """The harm of schedules: what genes harm alone adds up to it, times the exponential of `v M v`.

    v are the roots of the genes' shares in the sum. Were each gene's harm the square of an error that it makes in some
    direction, M `[N, N]` would hold the cosines between these directions, to first order. A priori its entries are
    normal, all alike, so that this is Gaussian process regression with the squared cosine of v as its kernel. How large
    they are, evidence tells: where harms just add up, hardly anything is learnt.

    Args:
        harms: Harm of each gene at each index `[N, L]`.
        relief: Harm that is spared, by the lowest index from there to the last gene `[N, L]`; None for nothing.
        known_TN: Grid indices that were evaluated.
        kl_T: Their KL.
        rng: For M drawn from its posterior (by Matheron's rule); None for the most likely one.
    """

    def __init__(
        self,
        harms: Floats,
        relief: Floats | None,
        known_TN: Counts,
        kl_T: Floats,
        rng: np.random.Generator | None = None,
    ) -> None:
        self._harms, self._relief, self._genes = harms, relief, np.arange(len(harms))
        parts_TN = self._parts(known_TN)
        v = _roots(parts_TN)
        missed: Floats = np.log((kl_T + _FLOOR) / (parts_TN.sum(1) + _FLOOR))
        gram, noise = (v @ v.T) ** 2, _NOISE**2 * np.eye(len(v))
        fits = [np.linalg.cholesky(scale**2 * gram + noise) for scale in _SCALES]
        place = int(np.argmax([_evidence(root, missed) for root in fits]))
        root, scale, drawn = fits[place], _SCALES[place], np.zeros((len(harms), len(harms)))
        if rng is not None:
            drawn = scale * rng.standard_normal(drawn.shape)
            missed = missed - ((v @ drawn) * v).sum(1) - _NOISE * rng.standard_normal(len(v))
        weights = scale**2 * np.linalg.solve(root.T, np.linalg.solve(root, missed))
        self._matrix: Floats = drawn + (v.T * weights) @ v

    def __call__(self, indices_CN: Counts) -> Floats:
        """Harm of grid indices `[C]`."""
        parts_CN = self._parts(indices_CN)
        v = _roots(parts_CN)
        return np.asarray(parts_CN.sum(1) * np.exp(((v @ self._matrix) * v).sum(1)))

    def _parts(self, indices_CN: Counts) -> Floats:
        """Part of each gene in the sum of harms."""
        own = self._harms[self._genes, indices_CN]
        if self._relief is None:
            return own
        lowest = np.minimum.accumulate(indices_CN[:, ::-1], axis=1)[:, ::-1]
        return np.asarray(own - self._relief[self._genes, lowest])


def _roots(parts_TN: Floats) -> Floats:
    return np.asarray(np.sqrt(np.maximum(parts_TN, 0.0) / np.maximum(parts_TN.sum(1, keepdims=True), 1e-12)))


def _evidence(root: NDArray[np.floating], missed: Floats) -> float:
    return float(-np.log(np.diag(root)).sum() - (np.linalg.solve(root, missed) ** 2).sum() / 2)
