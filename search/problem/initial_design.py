"""Schedules that a search begins with: the shortened prompt, others that depth suggests, and ablations of genes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices

# Overall shares of the highest sparsity of the uniform schedules without a target.
_UNIFORM = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8)
EARLY_BLOCKS = 2
"""Blocks at the beginning where models form their massive activations and attention sinks: nothing may skip them."""
# Where plateaus begin, as shares of the blocks; blocks before that skip nothing. Tokens that keep their keys and values
# harm least in the last blocks; those that do not, harm less the fewer blocks run without them before the last one.
_STARTS = {"drop": (0.57, 0.5, 2 / 3, 0.4, 0.75, 0.25, 0.1), "keep": (0.57, 2 / 3, 0.5, 0.25, 0.1)}
# Starts and heights, as shares of the highest sparsity, without a target.
_OPEN_PLATEAUS = ((0.5, 0.4), (0.57, 0.65), (2 / 3, 1.0), (0.25, 0.65))
# Where plateaus of MLPs begin.
_MLP_STARTS = (0.57, 0.4)
# Where ramps begin, and their power of what is left of the depth; without a target they end at the highest sparsity.
_RAMPS = {"drop": ((0.25, 1.0), (0.1, 2.0)), "keep": ((0.57, 1.0), (2 / 3, 1.0), (0.5, 1.0), (0.4, 1.0))}
# Most schedules at a target beside the uniform one; where it is high, those that begin late do not reach it.
_MOST = 9
# What a gene skips in an ablation: about as much as good schedules skip where they skip at all.
ABLATION_SPARSITY = 0.6


def uniform_design(space: ScheduleSpace) -> list[GridIndices]:
    """Uniform schedules, which with the static router are a shorter prompt: the one at the target, or several.

    Where keys and values are kept they are none, and ruin a model whose first blocks skip: only the dense one is left.
    """
    at_target, rng = space.even_at_target, random.Random(0)
    if space.kv == "keep":
        return [] if space.has_target else [space.repair([0] * space.n_genes, rng)]
    totals = [round(space.top * share) * len(space.free_genes) for share in _UNIFORM]
    uniform = [space.even(total) for total in totals] if at_target is None else [at_target]
    return list(dict.fromkeys(space.repair(indices, rng) for indices in uniform))


def initial_design(space: ScheduleSpace) -> list[GridIndices]:
    """Schedules that every search should know, inside the space, each once: uniform ones first, if any, then by depth.

    Early blocks carry a model's computation on, late ones often refine it: plateaus skip alike from some block on, and
    ramps ever more. With a target they all meet it, the lower the earlier they begin; without, they spread over costs.
    Where halves of blocks skip apart, some of the plateaus are of MLPs alone.
    """
    n_blocks, rng = space.n_blocks, random.Random(0)
    depth = [block / n_blocks for block in space.genes.blocks]
    is_mlp = [name.startswith("mlp") for name in space.genes.names]

    def plateau(start: float) -> list[float]:
        first = max(EARLY_BLOCKS, round(start * n_blocks))
        return [float(block >= first) for block in space.genes.blocks]

    def ramp(start: float, power: float) -> list[float]:
        first = max(EARLY_BLOCKS / n_blocks, start)
        return [max(0.0, (at - first + 1 / n_blocks) / max(1 - first, 1 / n_blocks)) ** power for at in depth]

    plateaus, ramps = [plateau(start) for start in _STARTS[space.kv]], [ramp(*one) for one in _RAMPS[space.kv]]
    of_mlps = [[weight * mlp for weight, mlp in zip(plateau(start), is_mlp, strict=True)] for start in _MLP_STARTS]
    if not any(is_mlp):
        of_mlps = []
    shapes = [*of_mlps, *plateaus, *ramps] if space.kv == "drop" else [*ramps, *plateaus[:3], *of_mlps, *plateaus[3:]]
    if space.target_total is None and not space.limits:
        designs = [_scaled(space, plateau(start), round(height * space.top)) for start, height in _OPEN_PLATEAUS]
        designs += [_scaled(space, one, space.top) for one in ramps]
    else:
        designs = [indices for weights in shapes if (indices := reaching(space, weights)) is not None][:_MOST]
    # Where no block may skip that depth suggests, the most even schedule is left.
    designs = designs or [space.even_at_target or (0,) * space.n_genes]
    inside = (one if space.contains(one) else space.repair(one, rng) for one in designs)
    return list(dict.fromkeys([*uniform_design(space), *inside]))


def ablations(space: ScheduleSpace, most: int | None = None, sparsity: float = ABLATION_SPARSITY) -> list[GridIndices]:
    """Schedules in which one free gene skips: how sensitive the model is to it.

    They need not keep the target and the limits. The last block comes first: each schedule then begins like
    the one before it.

    Args:
        space: Space of schedules.
        most: Largest number of schedules; where there are more free genes, neighbours are ablated together, in
            groups of about the same size. None for each gene by itself.
        sparsity: Sparsity of an ablated gene, to the nearest grid point.
    """
    free, level = space.free_genes, min(space.top, max(1, space.grid.index(sparsity)))
    n_groups = len(free) if most is None else min(most, len(free))
    if not space.top or n_groups < 1:
        return []
    ends = [place * len(free) // n_groups for place in range(n_groups + 1)]
    groups = [frozenset(free[start:end]) for start, end in pairwise(ends)]
    return [tuple(level * (gene in group) for gene in range(space.n_genes)) for group in reversed(groups)]


def ablated(space: ScheduleSpace, indices: Sequence[int]) -> tuple[int, ...]:
    """The neighbouring free genes that alone skip, and all alike, as in one of `ablations`; or none."""
    if len(indices) != space.n_genes:
        return ()
    free = space.free_genes
    places = [place for place, block in enumerate(free) if indices[block]]
    if not places or len({indices[free[place]] for place in places}) > 1 or len(places) == len(free) > 1:
        return ()
    if places[-1] - places[0] >= len(places) or sum(map(bool, indices)) > len(places):
        return ()
    return tuple(free[place] for place in places)


def _scaled(space: ScheduleSpace, weights: Sequence[float], height: float) -> GridIndices:
    free = set(space.free_genes)
    return tuple(
        min(space.top, math.floor(height * weight + 0.5)) * (gene in free) for gene, weight in enumerate(weights)
    )


def reaching(space: ScheduleSpace, weights: Sequence[float]) -> GridIndices | None:
    """Weights of all genes scaled until they meet the target and keep the limits; None if they cannot."""
    target = space.target_total

    def is_enough(indices: GridIndices) -> bool:
        return sum(indices) >= target if target is not None else space.constraint_violation(indices) == 0

    height = _lowest(lambda height: is_enough(_scaled(space, weights, height)), 8.0 * space.top)
    if height is None:
        return None
    reached = _scaled(space, weights, height)
    # What rounding adds beyond the target comes off the first blocks, so that tokens still skip from some block on:
    # those that come back bring later blocks states that nothing was made for.
    if target is None:
        return _trimmed(space, reached, is_enough)
    spare, least = sum(reached) - target, list(reached)
    for block, index in enumerate(least):
        taken = min(spare, 1, index)
        least[block], spare = index - taken, spare - taken
    return tuple(least)


def _trimmed(space: ScheduleSpace, indices: GridIndices, is_enough: Callable[[GridIndices], bool]) -> GridIndices:
    """The same with one step less in as many of the first genes of each kind as it can do without."""
    kinds = [name.partition("_")[0] for name in space.genes.names]
    done = set[str]()
    for gene, index in enumerate(indices):
        less = (*indices[:gene], index - 1, *indices[gene + 1 :])
        if not index or kinds[gene] in done:
            continue
        if is_enough(less):
            indices = less
        else:
            done.add(kinds[gene])
    return indices


def _lowest(holds: Callable[[float], bool], most: float) -> float | None:
    """The lowest number at which what stays true from there on is true, to a 64th; None if it is not even at most."""
    if not holds(most):
        return None
    low, high = 0.0, most
    while high - low > 1 / 64:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
