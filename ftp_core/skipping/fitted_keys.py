"""Fits the keys and values of tokens that skip attention to each schedule that is to be evaluated, trained or exported.

A token that has skipped blocks brings other states to the next one than the dense model's, so that the keys and values
that are made of them are not those that others would attend to. The projections of these tokens are fitted to the
dense model's keys and values by ridge regression, over the tokens of calibration prompts that skip under the schedule;
it takes no operation more to run them. SwiftKV (Qiao et al., 2024, arXiv 2410.03960) trains such projections for one
schedule, where the prompt stops at a block.

Dimensions: B rows, L tokens of a row, T tokens of all rows, S of them that skip, D hidden width, K width of a
projection.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftp_core.routers import RoutingState, StaticRouter
from ftp_core.schedule import BlockSparsity, SparsitySchedule
from ftp_core.skipping.halves import names_of_halves
from ftp_core.skipping.interception import BlockCall, exclusive
from ftp_core.skipping.kept_projections import KeptProjections, give_kept_projections, kept_projections_of
from ftp_core.skipping.norms import MeasuredStates
from ftp_core.skipping.projection_fits import RidgeSums, best_changes, changed_copies, of_tokens, projected
from ftp_core.skipping.skipping import PromptPass
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.skipping.substitutes import Substitutes, substitutes_of
from ftp_core.text.encoding import pad_right

# An attribute of a model that is no submodule, as that of `ftp_core.skipping.kept_projections` is.
_FIELD = "_ftp_fitted_keys"
_RIDGES = (0.01, 0.1, 1.0, 10.0)
# Of the prompts, every fifth says which penalty is best.
_ASIDE = 5
# Tokens of a pass, padding included; tokens of all prompts together, and of one of them, which is cut there.
_AT_A_TIME, _MOST_TOKENS, _LONGEST = 1024, 4096, 1024
# Bytes of the dense model's keys and values that are kept.
_MOST_BYTES = 2**30
# Bytes of hidden states, and of projections, that schedules which begin alike share; and schedules whose projections
# are remembered at least, so that a router may learn for as many.
_SHARED_BYTES, _SCHEDULES = 2**27, 4

_Prefix = tuple[BlockSparsity, ...]


@dataclass
class _Batch:
    """Prompts of one length or nearly so.

    Attributes:
        ids: Tokens `[B, L]`, padded right.
        lengths: Tokens of each row `[B]`.
        aside: Rows that say which penalty is best `[B]`.
        targets: What the dense model's projections make of each token, by block and name `[T, K]`.
    """

    ids: Tensor
    lengths: Tensor
    aside: Tensor
    targets: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def real(self) -> Tensor:
        """Tokens that are no padding `[B, L]`."""
        return torch.arange(self.ids.shape[1]) < self.lengths[:, None]


class FittedKeys:
    """Projections of skipped tokens' keys and values, fitted to each schedule when it is first asked for.

    Those of a block depend on what the schedule says of it and the blocks before it, so that schedules which begin
    alike share them. Blocks are fitted one behind the other, each to the states that the fitted ones before it leave.
    Tokens are chosen by the static router, whatever router runs.

    Args:
        model: The dense model.
        prompts: Token ids of calibration prompts.
        on_batch: Called after each batch of the dense model's pass, `n_batches(prompts)` times.

    Raises:
        ModelError: Projections of the model are quantised or not in memory, or its blocks have other parts than
            attention and MLP.
    """

    def __init__(
        self, model: SkippingModel, prompts: Sequence[Sequence[int]], on_batch: Callable[[], None] = lambda: None
    ) -> None:
        self.prompts = tuple(map(tuple, prompts))
        self._batches = _batches(self.prompts)
        self._router = StaticRouter()
        self._begin()
        for batch in self._batches:
            _run_dense(model, batch)
            on_batch()

    def _begin(self, made_with: tuple[int, Substitutes | None] | None = None) -> None:
        self._made_with = made_with
        self._states: OrderedDict[_Prefix, list[Tensor]] = OrderedDict()
        self._fits: OrderedDict[_Prefix, Mapping[str, nn.Module]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy begins with: nothing that was fitted."""
        return {name: value for name, value in vars(self).items() if name not in ("_states", "_fits", "_made_with")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def fingerprint(self) -> str:
        """SHA-256 over the prompts."""
        return hashlib.sha256(repr(self.prompts).encode()).hexdigest()

    @property
    def n_tokens(self) -> int:
        """Number of tokens that run through the blocks for a schedule."""
        return sum(map(len, self.prompts))

    @property
    def n_bytes(self) -> int:
        """Memory that it holds at most, beside the prompts."""
        targets = (made for batch in self._batches for of_block in batch.targets for made in of_block.values())
        return sum(made.nbytes for made in targets) + 2 * _SHARED_BYTES

    def of(self, model: SkippingModel, schedule: Sequence[float]) -> KeptProjections | None:
        """Projections fitted to a schedule; None if no skipped token has keys there.

        Args:
            model: The dense model.
            schedule: One sparsity per block, or what `SparsitySchedule.of_halves` makes.

        Raises:
            ScheduleError: It has another number of blocks.
        """
        schedule = model.checked(schedule)
        entries = schedule.blocks
        fitted = [index for index, entry in enumerate(entries) if entry.keeps_kv and entry.attention > 0]
        if not fitted:
            return None
        with exclusive(model.blocks), torch.inference_mode(False), torch.no_grad():
            # What was fitted holds as long as the same tokens are protected, and the same maps stand in.
            made_with = model.keep_first, substitutes_of(model.model)
            if self._made_with != made_with:
                self._begin(made_with)
            missing = next((index for index in fitted if entries[: index + 1] not in self._fits), None)
            if missing is not None:
                self._fit(model, schedule, [index for index in fitted if index >= missing])
            found = {index: self._fits[entries[: index + 1]] for index in fitted}
            for index in reversed(fitted):
                self._fits.move_to_end(entries[: index + 1])
            most = _SCHEDULES * len(fitted)
            _shrink(self._fits, lambda parts: sum(_n_bytes(part) for part in parts.values()), keep=most)
        return KeptProjections({index: parts for index, parts in found.items() if parts}, schedule)

    def _fit(self, model: SkippingModel, schedule: SparsitySchedule, fitted: Sequence[int]) -> None:
        """Fits the projections of blocks; those of blocks before them are known."""
        entries = schedule.blocks
        start = next((n for n in range(fitted[0], 0, -1) if entries[:n] in self._states), 0)
        known: Sequence[Tensor | None] = self._states[entries[:start]] if start else [None] * len(self._batches)
        passes = [
            _Passing(model, schedule, self._router, batch, at) for batch, at in zip(self._batches, known, strict=True)
        ]
        of_attention, _ = names_of_halves(model.family, model.model.config.model_type)
        for index in fitted:
            before = kept_projections_of(model.model)
            own = {i: self._fits[entries[: i + 1]] for i in range(start, index) if entries[: i + 1] in self._fits}
            give_kept_projections(model.model, KeptProjections(own))
            try:
                sums = RidgeSums(), RidgeSums()
                for one in passes:
                    one.run(start, index, sums)
            finally:
                give_kept_projections(model.model, before)
            start = index
            attention = model.blocks[index].get_submodule(of_attention)
            self._fits[entries[: index + 1]] = changed_copies(attention, best_changes(*sums, _RIDGES))
            if index:
                self._states[entries[:index]] = [one.hidden for one in passes if one.hidden is not None]
        for n in range(len(entries) - 1, 0, -1):
            if entries[:n] in self._states:
                self._states.move_to_end(entries[:n])
        _shrink(self._states, lambda hidden: sum(one.nbytes for one in hidden))


class _Passing:
    """A batch on its way through the blocks under a schedule.

    Attributes:
        hidden: Hidden states that it stands at `[B, L, D]`; None before the first block.
    """

    def __init__(
        self,
        model: SkippingModel,
        schedule: SparsitySchedule,
        router: StaticRouter,
        batch: _Batch,
        hidden: Tensor | None,
    ) -> None:
        self._model, self._schedule, self._router, self._batch = model, schedule, router, batch
        self.hidden = hidden

    def run(self, start: int, stop: int, sums: tuple[RidgeSums, RidgeSums]) -> None:
        """Runs blocks from `start` up to `stop`; adds what the projections of `stop` are to learn to both sums.

        Args:
            start: First block to run, which it stands at.
            stop: Block that it stands at then.
            sums: Sums over the rows to fit to, and over those set aside.
        """
        model, batch = self._model, self._batch
        lengths_B = batch.lengths.to(model.device)
        state = RoutingState.padded_right(lengths_B, batch.ids.shape[1], model.keep_first)
        handler = PromptPass(model.model, model.family, self._schedule, self._router, state, state.real, None)

        def handle(index: int, call: BlockCall) -> Tensor:
            if index < start:
                return call.hidden if self.hidden is None else self.hidden
            if index < stop:
                return handler(index, call)
            if index == stop:
                self.hidden = call.hidden
                self._add(index, call, state, sums)
            return call.hidden

        model.run(handle, batch.ids.to(model.device), batch.lengths.tolist(), use_cache=False)

    def _add(self, index: int, call: BlockCall, state: RoutingState, sums: tuple[RidgeSums, RidgeSums]) -> None:
        found = projected(call, self._model.family, MeasuredStates(call.hidden.contiguous()))
        state.block = index
        skips_BL = state.real & ~self._router.keep(self._schedule.blocks[index].attention, state)
        aside_B1 = self._batch.aside[:, None].to(skips_BL.device)
        for of_rows, chosen_BL in zip(sums, (skips_BL & ~aside_B1, skips_BL & aside_B1), strict=True):
            chosen_T = chosen_BL[state.real].cpu()
            of_rows.add(
                of_tokens(found, chosen_BL), {name: made[chosen_T] for name, made in self._batch.targets[index].items()}
            )


@torch.inference_mode(False)
@torch.no_grad()
def _run_dense(model: SkippingModel, batch: _Batch) -> None:
    """Notes what the dense model's projections make of the tokens of a batch."""
    names_of_halves(model.family, model.model.config.model_type)
    real_BL = batch.real.to(model.device)

    def handle(index: int, call: BlockCall) -> Tensor:
        found = projected(call, model.family, MeasuredStates(call.hidden))
        # On the CPU, where there is room, and where it is found wherever the model goes.
        batch.targets.append({name: one.made[real_BL.to(one.made.device)].cpu() for name, one in found.items()})
        return call.run(call.hidden)

    model.run(handle, batch.ids.to(model.device), batch.lengths.tolist(), use_cache=False)


def _batches(prompts: Sequence[Sequence[int]]) -> list[_Batch]:
    """Prompts by their length, in batches of about so many tokens."""
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    groups: list[list[int]] = []
    for place in order:
        group = groups[-1] if groups else []
        if not group or (len(group) + 1) * len(prompts[place]) > _AT_A_TIME:
            groups.append(group := [])
        group.append(place)
    return [
        _Batch(
            pad_right([prompts[place] for place in group], 0),
            torch.tensor([len(prompts[place]) for place in group]),
            torch.tensor([place % _ASIDE == _ASIDE - 1 for place in group]),
        )
        for group in groups
    ]


def prompts_to_fit(model: SkippingModel, prompts: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
    """The first distinct prompts of some, perhaps cut, that keys are fitted to; as many as time and memory allow.

    Raises:
        ModelError: See `FittedKeys`.
    """
    of_token = _Batch(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, dtype=torch.long), torch.zeros(1).bool())
    _run_dense(model, of_token)
    n_bytes = sum(made.nbytes for of_block in of_token.targets for made in of_block.values())
    left, chosen = min(_MOST_TOKENS, _MOST_BYTES // n_bytes), dict[tuple[int, ...], None]()
    for prompt in prompts:
        cut = tuple(prompt[:_LONGEST])
        # Its first token never skips.
        if len(cut) < 2 or cut in chosen:
            continue
        left -= len(cut)
        if left < 0 and chosen:
            break
        chosen[cut] = None
    return list(chosen)


def n_batches(prompts: Sequence[Sequence[int]]) -> int:
    """Number of batches that `FittedKeys` runs through the dense model."""
    return len(_batches(prompts))


def _n_bytes(module: nn.Module) -> int:
    return sum(weight.nbytes for weight in (*module.parameters(), *module.buffers()))


def _shrink(known: OrderedDict[_Prefix, Any], n_bytes: Callable[[Any], int], keep: int = 0) -> None:
    """Forgets what was least recently used, but for the last `keep`, until the rest fits."""
    held = sum(map(n_bytes, known.values()))
    while len(known) > keep and held > _SHARED_BYTES:
        held -= n_bytes(known.popitem(last=False)[1])


def give_fitted_keys(model: PreTrainedModel, keys: FittedKeys | None) -> None:
    """Lets keys and values of skipped tokens be fitted wherever quality counts (`keys_fitted`); None: they are not."""
    model.__dict__[_FIELD] = keys


def fitted_keys_of(model: PreTrainedModel) -> FittedKeys | None:
    """What fits the keys and values of a model's skipped tokens, if anything does."""
    found: FittedKeys | None = model.__dict__.get(_FIELD)
    return found


@contextmanager
def keys_fitted(model: SkippingModel, schedule: SparsitySchedule) -> Iterator[None]:
    """Context in which the model's skipped tokens have keys and values fitted to a schedule, if they shall have any."""
    keys = fitted_keys_of(model.model)
    if keys is None:
        yield
        return
    before = kept_projections_of(model.model)
    give_kept_projections(model.model, keys.of(model, schedule))
    try:
        yield
    finally:
        give_kept_projections(model.model, before)
