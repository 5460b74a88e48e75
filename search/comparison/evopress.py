"""EvoPress: which attention and MLP halves are removed is found by evolution, with level switches."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch

from ftp_core.baselines.fitting import BATCH_SIZE, Effort, as_it_is, check_halves, check_usable, text_batches
from ftp_core.baselines.halves import Half, Shrinking, divergence_from_dense, flops_of_halves
from ftp_core.baselines.protocol import Budget
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.errors import ModelError
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample, PromptBatch
from search.proposers.operators import Individual, survivors

Removal = tuple[bool, ...]
"""For each half of a model whether it is removed."""

# Selection: share of the texts that candidates run on, and how many of them go on.
_STAGES = ((1 / 16, 2), (1 / 4, 1), (1.0, 1))
# As in the paper, the lower one of two draws from 1 to here is the number of switches.
_MOST_SWITCHES = 3
# Share of children that trade halves of one kind for some of the other.
_TRADE_RATE = 0.2
# Most draws of a child that is at the budget, and not its parent.
_MOST_TRIES = 20


class EvoPress:
    """Removes attention and MLP halves: a (1 + lambda) evolution by the KL from the dense model on calibration texts.

    As in the paper a child is its parent after one to three level switches, each of which puts one removed half back
    and removes another one of the same kind; and children are selected in stages, the survivors of few texts on more of
    them. The best of random removals is the first parent; the best child of a generation becomes the next one unless
    the parent is better.

    The paper removes as many attentions as MLPs. Here a removal is as near to the budget in operations as halves allow,
    whatever their numbers: one child in five trades a half for some of the other kind. Sizes are those of a CPU: by
    default 32 starts, 8 children in each of 60 generations, and 4,096 tokens, of which a 16th is drawn for all
    children, then a quarter for two of them, while the best one runs on all. That is about 400,000 tokens in all. The
    paper's scripts draw 64 starts, and 32 children in each of k (n - k) / 1.5 generations for k of n blocks, on 2,048
    and 32,768 tokens out of 131,072. The texts of the last stage are always the same ones here, so that the parent need
    not run again, and cannot become a worse one.

    Selection is that of the genetic proposers of the searches here (`search.proposers.operators.survivors`). Their
    engine evaluates schedules, which skip tokens, and never removes a half.

    Args:
        generations: Generations after the first parent; without any it is the result.
        offspring: Lambda, children in each.
        starts: Random removals of which the best is the first parent.
        tokens: Tokens of the texts by which it is decided, at least.

    Raises:
        ModelError: One of them is less than one, or there are fewer generations than none.
    """

    name = "evopress"
    paper = "EvoPress: Accurate Dynamic Model Compression via Evolutionary Search (arXiv 2410.14649)"
    has_chance = True
    trains = False

    def __init__(self, generations: int = 60, offspring: int = 8, starts: int = 32, tokens: int = 4096) -> None:
        if min(generations + 1, offspring, starts, tokens) < 1:
            raise ModelError(
                f"EvoPress is to run {generations} generations of {offspring} children after {starts} starts, on "
                f"{tokens} tokens: give no negative number of generations, and at least one of all else."
            )
        self._generations, self._offspring, self._starts, self._tokens = generations, offspring, starts, tokens

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
        check_usable(model, calibration)
        effort, rng = Effort(model), random.Random(seed)
        shrinking, costs = Shrinking(model, effort), flops_of_halves(model, budget)
        removals = Removals(costs, budget.dense_flops(model) - budget.target_flops(model))
        removed: list[Half] = []
        if budget.share:
            texts = _texts(model, calibration, self._tokens, rng)
            selection = _Selection(shrinking, removals, texts, effort)
            parent = selection.best(removals.starts(self._starts, rng), rng)
            for generation in range(self._generations):
                on_step(generation / self._generations)
                children = [removals.child(parent, rng) for _ in range(self._offspring)]
                parent = selection.best(children, rng, parent)
            removed = removals.halves_of(parent)
        on_step(1.0)
        return shrinking.pruned(self.name, removed)


class Removals:
    """Removals whose operations are as near to a budget as halves allow: within half of the cheapest half.

    Where there is none, as near as random ones come.

    Args:
        costs: Operations of each half.
        to_save: Operations to save.
    """

    def __init__(self, costs: Mapping[Half, float], to_save: float) -> None:
        self._halves, self._costs, self._to_save = list(costs), list(costs.values()), to_save
        self._kinds = [[i for i, half in enumerate(costs) if half.part == part] for part in (0, 1)]
        self.tolerance = min(self._costs) / 2

    def halves_of(self, removal: Removal) -> list[Half]:
        """The halves that are removed."""
        return [half for half, is_gone in zip(self._halves, removal, strict=True) if is_gone]

    def gap(self, removal: Iterable[bool]) -> float:
        """Difference between the operations that are saved and those to save."""
        saved = sum(cost for cost, is_gone in zip(self._costs, removal, strict=True) if is_gone)
        return abs(saved - self._to_save)

    def starts(self, count: int, rng: random.Random) -> list[Removal]:
        """Random removals, of which those stay that are as near to the budget as any."""
        drawn = []
        for _ in range(count):
            removal = [False] * len(self._costs)
            self._approach(removal, (), rng)
            drawn.append(tuple(removal))
        nearest = max(self.tolerance, min(map(self.gap, drawn)))
        return [removal for removal in drawn if self.gap(removal) <= nearest]

    def child(self, parent: Removal, rng: random.Random) -> Removal:
        """Another removal, no further from the budget than halves allow; the parent if none is found."""
        furthest = max(self.tolerance, self.gap(parent))
        for _ in range(_MOST_TRIES):
            child = list(parent)
            if rng.random() < _TRADE_RATE:
                place = rng.randrange(len(child))
                child[place] = not child[place]
            else:
                for _ in range(min(rng.randint(1, _MOST_SWITCHES), rng.randint(1, _MOST_SWITCHES))):
                    self._switch(child, rng)
            # After a switch only where halves of a kind differ in their operations.
            self._approach(child, [place for place, is_gone in enumerate(parent) if child[place] != is_gone], rng)
            if tuple(child) != parent and self.gap(child) <= furthest:
                return tuple(child)
        return parent

    def _switch(self, removal: list[bool], rng: random.Random) -> None:
        """Puts a half back, and removes another one of its kind, in place."""
        kind = rng.choice(self._kinds)
        gone, kept = [i for i in kind if removal[i]], [i for i in kind if not removal[i]]
        if gone and kept:
            removal[rng.choice(gone)], removal[rng.choice(kept)] = False, True

    def _approach(self, removal: list[bool], changed: Collection[int], rng: random.Random) -> None:
        """Removes or puts back random halves, in place, while one brings operations nearer to the budget.

        Args:
            removal: The removal.
            changed: Halves that stay as they are.
            rng: Source of randomness.
        """
        while True:
            gap, nearer = self.gap(removal), []
            for place in range(len(removal)):
                if place not in changed:
                    removal[place] = not removal[place]
                    if self.gap(removal) < gap:
                        nearer.append(place)
                    removal[place] = not removal[place]
            if not nearer:
                return
            place = rng.choice(nearer)
            removal[place] = not removal[place]


class _Selection:
    """Selects the best of candidates in stages; what is known of a candidate is not computed again."""

    def __init__(self, shrinking: Shrinking, removals: Removals, texts: Sequence[PromptBatch], effort: Effort) -> None:
        self._shrinking, self._removals, self._effort = shrinking, removals, effort
        self._n_tokens = [int(batch.lengths.sum()) for batch in texts]
        self._known: dict[tuple[Removal, int], float] = {}
        with torch.inference_mode(), shrinking.without(()) as model:
            self._losses = [divergence_from_dense(model, batch) for batch in texts]
        effort.tokens += sum(self._n_tokens)

    def best(self, candidates: Sequence[Removal], rng: random.Random, parent: Removal | None = None) -> Removal:
        """The best candidate, or the parent, which takes part in the last stage."""
        order = rng.sample(range(len(self._losses)), len(self._losses))
        for share, n_survivors in _STAGES:
            if share == 1.0 and parent is not None:
                candidates = [*candidates, parent]
            seen = order[: max(1, round(share * len(order)))]
            ranked = [Individual(one, (sum(self._loss(one, place) for place in sorted(seen)),)) for one in candidates]
            candidates = [one.genome for one in survivors(ranked, n_survivors, "nsga2", rng)]
        return candidates[0]

    @torch.inference_mode()
    def _loss(self, removal: Removal, place: int) -> float:
        """KL of a removal on one batch of texts, summed over tokens."""
        if (removal, place) not in self._known:
            with self._shrinking.without(self._removals.halves_of(removal)):
                self._known[removal, place] = float(self._losses[place](as_it_is))
            self._effort.tokens += self._n_tokens[place]
        return self._known[removal, place]


def _texts(
    model: SkippingModel, calibration: Sequence[EncodedExample], n_tokens: int, rng: random.Random
) -> list[PromptBatch]:
    """Batches of random texts until these have so many tokens, each of about what the first stage needs."""
    batches, group, left = list[PromptBatch](), list[EncodedExample](), n_tokens
    for example in rng.sample(calibration, len(calibration)):
        group.append(example)
        n_grouped = sum(len(one.prompt) + len(one.continuations[one.answer]) for one in group)
        if n_grouped >= min(left, _STAGES[0][0] * n_tokens) or len(group) == BATCH_SIZE:
            batches += text_batches(model, group)
            group, left = [], left - n_grouped
            if left <= 0:
                return batches
    return batches + (text_batches(model, group) if group else [])
