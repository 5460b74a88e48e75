"""Runs the halves of a block on different tokens, and keeps keys and values of tokens that skip its attention.

The block's own forward runs on the tokens that run any half; inside it, its attention and its MLP run on those that are
theirs, and add nothing to the others, or what stands in for them (`ftp_core.skipping.substitutes`). So what a half is,
the block's own code says: where both read the same hidden states (parallel residuals) as where one reads what the other
has added to, and with norms on either side.

Dimensions: B rows, L tokens of a row, S tokens whose keys and values are wanted, D hidden width, G key heads, E width
of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ftp_core.errors import ModelError
from ftp_core.skipping.cache import BlockCache
from ftp_core.skipping.families import Family
from ftp_core.skipping.gathering import Chosen, Ends
from ftp_core.skipping.interception import BlockCall, replaced_forwards
from ftp_core.skipping.norms import MeasuredStates, normed, root_mean_square_norms
from ftp_core.skipping.substitutes import LowRank


def names_of_halves(family: Family, model_type: str) -> tuple[str, str]:
    """Attributes of a block with its attention and its MLP.

    Raises:
        ModelError: Blocks of this family have other parts beside them.
    """
    if family.halves is None:
        raise ModelError(
            f"Blocks of {model_type} models have parts beside attention and MLP, so that they skip as a whole only: "
            "give a schedule with one sparsity per block (--granularity block --kv drop)."
        )
    return family.halves


@dataclass(frozen=True)
class Share:
    """What becomes of the tokens of a call in one half of a block.

    Attributes:
        chosen: Tokens that run it.
        rest: Tokens that skip it; only needed where something stands in for it.
        substitute: Map that stands in for it; None if nothing is added to the tokens that skip it.
    """

    chosen: Chosen
    rest: Chosen | None = None
    substitute: LowRank | None = None

    def whole(self, short_BKD: Tensor, hidden_BLD: Tensor) -> Tensor:
        """What the half adds to all tokens of the call `[B, L, D]`.

        Args:
            short_BKD: What it computed for the tokens that run it.
            hidden_BLD: What it read, or would have read, of each token.
        """
        if self.rest is None or self.substitute is None:
            return self.chosen.among_zeros(short_BKD, hidden_BLD.shape[1])
        rest_BSD = self.substitute(self.rest.tokens.gather(hidden_BLD))
        if isinstance(self.chosen.tokens, Ends):
            return self.chosen.tokens.joined(short_BKD, rest_BSD)
        return self.chosen.among_zeros(short_BKD, hidden_BLD.shape[1]) + self.rest.among_zeros(
            rest_BSD, hidden_BLD.shape[1]
        )


def on_their_tokens(
    family: Family, block: nn.Module, attention: Share | None, mlp: Share | None
) -> AbstractContextManager[None]:
    """Context in which a block's halves run on some of the tokens of its call.

    Args:
        family: Family of the model.
        block: The block.
        attention: Tokens that run its attention, and what others get; None if all of the call run it.
        mlp: The same for its MLP.
    """
    assert family.halves is not None
    parts = list(zip(family.halves, (attention, mlp), strict=True))
    theirs = [share for _, share in parts if share is not None]

    def on_some(index: int, module: nn.Module) -> Callable[..., Any]:
        share, forward = theirs[index], module.forward
        take = share.chosen.tokens.gather

        def run(*args: Any, **kwargs: Any) -> Any:
            hidden_BLD, *rest = args or (kwargs.pop("hidden_states"),)
            given = {name: kwargs[name] for name in family.per_token if kwargs.get(name) is not None}
            kwargs |= {name: take(argument) for name, argument in given.items()}
            short_BKD = take(hidden_BLD)
            out = forward(short_BKD, *rest, **kwargs)
            first, *others = out if isinstance(out, tuple) else (out,)
            whole_BLD = share.whole(first.reshape(short_BKD.shape), hidden_BLD)
            return (whole_BLD, *others) if isinstance(out, tuple) else whole_BLD

        return run

    return replaced_forwards([block.get_submodule(name) for name, share in parts if share is not None], on_some)


class _KeysTakenError(Exception):
    """Keys and values are there: the rest of the block need not run."""


class _Taker:
    """Takes the keys and values that an attention hands to its cache, and ends the call."""

    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values = key_states, value_states
        raise _KeysTakenError

    def get_seq_length(self, *_: Any) -> int:
        return 0


def keys_and_values(
    call: BlockCall,
    family: Family,
    states: MeasuredStates,
    projections: Mapping[str, nn.Module] | None = None,
    **per_token: Any,
) -> tuple[Tensor, Tensor]:
    """Computes keys and values of some tokens in a block `[B, G, S, E]`, and nothing else of it.

    Args:
        call: Call of the block.
        family: Family of the model.
        states: Hidden states before the block `[B, S, D]`.
        projections: What runs in place of projections of its attention, by their names.
        per_token: Arguments of the block that have an entry for each of these tokens.
    """
    assert family.halves is not None
    attention, taker = call.block.get_submodule(family.halves[0]), _Taker()
    queries = [] if family.query is None else [attention.get_submodule(family.query)]
    # Norms of queries may be of all heads at once.
    query_norms = [module for name, module in attention.named_children() if name == "q_norm"] if queries else []
    norms = root_mean_square_norms(call.block)
    others = {} if projections is None else projections
    own, instead = [attention.get_submodule(name) for name in others], list(others.values())

    def without_queries(index: int, module: Any) -> Callable[..., Tensor]:
        if index >= len(queries):
            return lambda queries: queries
        # One head is embedded at less cost than all; but attention that counts its heads itself asks for all of them.
        counts = hasattr(attention, "num_heads")
        width = module.out_features if counts else getattr(attention, "head_dim", module.out_features)
        return lambda hidden, *_, **__: hidden.new_zeros(*hidden.shape[:-1], width)

    def with_known_squares(index: int, module: nn.Module) -> Callable[..., Tensor]:
        return lambda hidden: normed(module, states if hidden is states.hidden else MeasuredStates(hidden))

    try:
        with (
            replaced_forwards([*queries, *query_norms], without_queries),
            replaced_forwards(norms, with_known_squares),
            replaced_forwards(own, lambda index, _: instead[index].forward),
        ):
            call.run(states.hidden, **{"attention_mask": None, family.cache_argument: taker}, **per_token)
    except _KeysTakenError:
        return taker.keys, taker.values
    raise ModelError("The block's attention handed no keys and values to its cache, so that none can be kept.")


class MergedKeys:
    """Stands in for the cache of a block whose attention some tokens run; the others have keys and values already.

    Args:
        cache: Cache of the block, which is filled; None to keep nothing.
        columns_BL: Column of each token, `DEAD` where there is none.
        has_dead: True if there is any such.
        chosen: Tokens that run the attention.
        rest: Tokens that skip it.
        keys_BGSE: Keys of the latter.
        values_BGSE: Their values.
    """

    def __init__(
        self,
        cache: BlockCache | None,
        columns_BL: Tensor,
        has_dead: bool,
        chosen: Chosen,
        rest: Chosen,
        keys_BGSE: Tensor,
        values_BGSE: Tensor,
    ) -> None:
        self._cache, self._chosen, self._rest = cache, chosen, rest
        self._keys_BGSE, self._values_BGSE = keys_BGSE, values_BGSE
        self._columns_BL, self._has_dead = columns_BL, has_dead

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens, in their order `[B, G, L, E]`."""
        keys = self._merged(key_states, self._keys_BGSE)
        values = self._merged(value_states, self._values_BGSE)
        if self._cache is None:
            return keys, values
        self._cache.expect(self._columns_BL.to(keys.device), self._has_dead)
        return self._cache.update(keys, values)

    def get_seq_length(self, *_: Any) -> int:
        """Nothing stands before a prompt."""
        return 0

    def _merged(self, run_BGKE: Tensor, rest_BGSE: Tensor) -> Tensor:
        if isinstance(self._chosen.tokens, Ends):
            return self._chosen.tokens.joined(run_BGKE, rest_BGSE, 2)
        n_rows, n_heads, _, width = run_BGKE.shape
        whole_BGLE = run_BGKE.new_zeros(n_rows, n_heads, self._columns_BL.shape[1], width)
        # A filler is a token of the other kind. Those among the first are written over; those among the second keep
        # what the others' projections made of them, which may be other ones (`ftp_core.skipping.kept_projections`).
        for chosen, part in ((self._rest, rest_BGSE), (self._chosen, run_BGKE)):
            index = chosen.places[:, None, :, None].to(part.device).expand_as(part)
            if chosen is self._chosen and chosen.filler is not None:
                filler_B1K1 = chosen.filler[:, None, :, None].to(part.device)
                part = torch.where(filler_B1K1, whole_BGLE.gather(2, index), part)
            whole_BGLE.scatter_(2, index, part)
        return whole_BGLE
