"""Sensitivities of a model to what each block skips, from single-block ablations or from all trials."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dashboards.analysis.axes import Floats
from dashboards.analysis.trials import Found, Places
from studies.pareto import RUINED_KL
from studies.records.trial import ABLATION
from studies.records.trial_columns import TrialColumns

# Least eigenvalue, as a share of the largest, of a direction in which schedules differ: those that a target holds are 0
# up to rounding.
_LEAST_EIGENVALUE = 1e-10


@dataclass(frozen=True)
class Importance:
    """Sensitivities to all parts, which are blocks, or attention and MLP of each, from a linear fit of KL.

    Where the study has a target, what one part skips another does not, so that only differences between parts can be
    told: sensitivities are relative to their mean.
    """

    effect: Floats  # [parts] growth of KL, nats per token, for each share of tokens; NaN where trials do not tell it
    low: Floats  # [parts] lower ends of 95 % intervals
    high: Floats  # [parts] upper ends
    halves: bool  # True if the parts are attention and MLP of each block, in turn
    is_relative: bool  # True if the effects are relative to their mean
    r2: float  # share of the variance that the fit explains
    n: int  # number of trials that it rests on


@dataclass(frozen=True)
class Ablations:
    """Sensitivities to single parts, which are blocks, or attention and MLP of each, or to neighbours together."""

    first: Places  # [m] first part of each group that was ablated
    last: Places  # [m] its last part; the same one where a part was ablated by itself
    kl: Floats  # [m] KL where that group alone skips
    sparsity: float  # share of tokens that skip it then
    fidelity: float  # share of the search set that they were evaluated on
    halves: bool  # True if the parts are attention and MLP of each block, in turn


def ablations(found: Found) -> Ablations | None:
    """Collects single-part ablations, and those of neighbours where no finer one was made; None without any."""
    columns = found.columns
    if ABLATION not in columns.proposers or "kl" not in found.objectives:
        return None
    kl = found.values("kl")
    places = np.flatnonzero(np.isfinite(kl) & (columns.proposer == columns.proposers.index(ABLATION)))
    if not len(places):
        return None
    shares, halves = part_shares(columns)
    skips = shares[places] > 0
    # Finer ones first: a search that went on for longer ablated by themselves what it had ablated together.
    order = np.argsort(skips.sum(1), kind="stable")
    known, kept = np.zeros(shares.shape[1], dtype=bool), []
    for place in order.tolist():
        if not (known & skips[place]).any():
            known |= skips[place]
            kept.append(place)
    skips, places = skips[kept], places[kept]
    return Ablations(
        first=skips.argmax(1),
        last=shares.shape[1] - 1 - skips[:, ::-1].argmax(1),
        kl=kl[places],
        sparsity=float(shares[places].max()),
        fidelity=float(columns.fidelity[places].min()),
        halves=halves,
    )


def importance(found: Found) -> Importance | None:
    """Fits KL over all comparable trials that are not ruined; None where there are too few of them to tell.

    KL of parts that skip together about adds up, as long as the model is not ruined. The intervals hold though the
    fit does not (heteroscedasticity-consistent, HC3 of MacKinnon and White, 1985), and are no narrower than the usual.
    """
    shares, halves = part_shares(found.columns)
    if "kl" not in found.objectives:
        return None
    kl = found.values("kl")
    places = found.comparable[kl[found.comparable] <= RUINED_KL]
    n, parts = len(places), shares.shape[1]
    if n < trials_needed(found) or not parts:
        return None
    design, wanted = shares[places] - shares[places].mean(0), kl[places] - kl[places].mean()
    sizes, directions = np.linalg.eigh(design.T @ design)
    told = sizes > _LEAST_EIGENVALUE * max(float(sizes[-1]), 1.0)
    directions = directions[:, told]
    inverse = directions / sizes[told] @ directions.T
    slopes = inverse @ (design.T @ wanted)
    rest = wanted - design @ slopes

    varied = np.ptp(shares[places], axis=0) > 0
    is_relative = found.target is not None or float(np.ptp(design.sum(1))) < 1e-6
    contrasts = np.eye(parts) - (varied / max(1, varied.sum()) if is_relative else 0.0)
    lost = contrasts - contrasts @ directions @ directions.T
    known = varied & (np.linalg.norm(lost, axis=1) < 1e-6)

    freedom = n - int(told.sum()) - 1
    leverage = 1 / n + (design @ inverse * design).sum(1)
    single = np.square(rest / np.maximum(1 - leverage, 1e-3))
    usual = inverse * (float(rest @ rest) / freedom)
    robust = inverse @ (design.T @ (design * single[:, None])) @ inverse
    variance = np.maximum(*(np.einsum("pi,ij,pj->p", contrasts, one, contrasts) for one in (usual, robust)))
    # It takes half a second to load, and most studies have ablations.
    from scipy.stats import t

    effect = np.where(known, contrasts @ slopes, np.nan)
    half = float(t.ppf(0.975, freedom)) * np.sqrt(np.maximum(variance, 0.0))
    spread = float(wanted @ wanted)
    return Importance(
        effect=effect,
        low=effect - half,
        high=effect + half,
        halves=halves,
        is_relative=is_relative,
        r2=1 - float(rest @ rest) / spread if spread > 0 else 0.0,
        n=n,
    )


def trials_needed(found: Found) -> int:
    """Number of comparable trials below 1 nat that a fit takes."""
    return 3 * (int(part_shares(found.columns)[0].shape[1]) + 1)


def part_shares(columns: TrialColumns) -> tuple[Floats, bool]:
    """[n, parts] Shares of tokens that skip each part, on their grid; and True if the parts are halves of blocks."""
    shares, blocks = columns.schedule, columns.n_blocks
    attention, mlp = columns.halves[:, :blocks], columns.halves[:, blocks : 2 * blocks]
    apart = columns.has_halves and bool((attention != mlp).any())
    if apart:
        # In the order in which the model runs them.
        shares = np.stack([attention, mlp], 2).reshape(len(columns), 2 * blocks)
    return np.round(shares.astype(float), 6), apart
