"""Sensitivities of a model to what each block skips, from single-block ablations or from all trials."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dashboards.analysis.axes import Floats
from dashboards.analysis.trials import Found, Places
from studies.pareto import log_kl
from studies.records.trial import ABLATION


@dataclass(frozen=True)
class Importance:
    """Sensitivities to all blocks, from a linear fit of log(KL + 0.02)."""

    effect: Floats  # [blocks] growth of log(KL + 0.02) as all tokens skip the block rather than none
    error: Floats  # [blocks] standard errors
    r2: float  # share of the variance that the fit explains
    n: int  # number of trials that it rests on


@dataclass(frozen=True)
class Ablations:
    """Sensitivities to single blocks, or to neighbours together."""

    first: Places  # [m] first block of each group that was ablated
    last: Places  # [m] its last block; the same one where a block was ablated by itself
    kl: Floats  # [m] KL where that group alone skips
    sparsity: float  # share of tokens that skip it then


def ablations(found: Found) -> Ablations | None:
    """Collects single-block ablations, and those of neighbours where no finer one was made; None without any."""
    columns = found.columns
    if ABLATION not in columns.proposers or "kl" not in found.objectives:
        return None
    kl = found.values("kl")
    places = np.flatnonzero(np.isfinite(kl) & (columns.proposer == columns.proposers.index(ABLATION)))
    if not len(places):
        return None
    skips = columns.schedule[places] > 0
    # Finer ones first: a search that went on for longer ablated by themselves what it had ablated together.
    order = np.argsort(skips.sum(1), kind="stable")
    known, kept = np.zeros(columns.n_blocks, dtype=bool), []
    for place in order.tolist():
        if not (known & skips[place]).any():
            known |= skips[place]
            kept.append(place)
    skips, places = skips[kept], places[kept]
    last = columns.n_blocks - 1 - skips[:, ::-1].argmax(1)
    sparsity = float(columns.schedule[places].max())
    return Ablations(first=skips.argmax(1), last=last, kl=kl[places], sparsity=sparsity)


def importance(found: Found) -> Importance | None:
    """Fits KL over all comparable trials; None where there are too few of them to tell."""
    columns, places = found.columns, found.comparable
    n, blocks = len(places), columns.n_blocks
    if "kl" not in found.objectives or n < 3 * (blocks + 1) or not blocks:
        return None
    known = np.column_stack([np.ones(n), columns.schedule[places].astype(float)])
    wanted = log_kl(found.values("kl")[places])
    inverse = np.linalg.pinv(known.T @ known)
    fitted = inverse @ (known.T @ wanted)
    rest = wanted - known @ fitted
    variance = float(rest @ rest) / max(1, n - blocks - 1)
    spread = float(((wanted - wanted.mean()) ** 2).sum())
    return Importance(
        effect=fitted[1:],
        error=np.sqrt(np.maximum(0.0, variance * np.diag(inverse)[1:])),
        r2=1 - float(rest @ rest) / spread if spread > 0 else 0.0,
        n=n,
    )
