"""Counts the memory of a schedule: keys and values, the peak of a prefill, and the peak of a run as it is.

Shapes: B rows, L tokens of a row, D hidden width.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig

from ftp_core.checks import check_lengths
from ftp_core.routers import DynamicRouter, Router, RoutingState, StaticRouter
from ftp_core.skipping.cache import FTPCache
from ftp_core.skipping.interception import replaced_forwards
from ftp_core.skipping.skipping import PromptPass
from ftp_core.skipping.skipping_model import SkippingModel


class BlockHeads(NamedTuple):
    """Heads of a block's attention.

    Attributes:
        query: Number of heads of queries.
        key: Number of heads of keys, which these share.
    """

    query: int
    key: int


def kv_bytes(
    model: SkippingModel,
    schedule: Sequence[float],
    batch: int,
    length: int,
    new_tokens: int = 0,
    heads: Sequence[BlockHeads] | None = None,
) -> int:
    """Bytes of all keys and values held behind a prompt and the tokens that were decoded after it.

    As `FTPCache.kv_bytes` reports them for rows of equal length whose decoded tokens are all kept. Sliding windows drop
    keys as with the static router; a router that keeps older tokens holds fewer keys in the end.

    Args:
        model: The model.
        schedule: One sparsity per block, or a schedule with halves.
        batch: Rows.
        length: Prompt tokens in each row.
        new_tokens: Tokens run behind the prompt.
        heads: Heads of each block, where they are not those of the configuration.

    Raises:
        ScheduleError: The schedule has another number of blocks.
    """
    windows, of_blocks = model.family.windows(model.model), block_heads(model) if heads is None else heads
    numbers = sum(
        slots_held(entry.n_keys(length), length, new_tokens, window)[-1] * 2 * own.key * head_width(block)
        for entry, window, own, block in zip(
            model.checked(schedule).blocks, windows, of_blocks, block_configs(model), strict=True
        )
    )
    return int(batch * numbers * model.model.dtype.itemsize)


def block_heads(model: SkippingModel) -> list[BlockHeads]:
    """Heads of each block, from the model's configuration."""
    return [BlockHeads(block.num_attention_heads, key_heads(block)) for block in block_configs(model)]


def block_configs(model: SkippingModel) -> list[PreTrainedConfig]:
    """The configuration of each block; heads of some families differ between blocks."""
    return [model.model.config.per_layer_config[index] for index in range(model.n_blocks)]


def head_width(config: PreTrainedConfig) -> int:
    """Numbers in a key of one head, from the configuration of a block."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def key_heads(config: PreTrainedConfig) -> int:
    """Number of heads of keys, which query heads share; from the configuration of a block."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def slots_held(kept: int, length: int, new_tokens: int, window: int | None) -> list[int]:
    """Keys of a row that a block's cache holds, after the prompt and after each decoded token `[1 + new_tokens]`.

    Args:
        kept: Prompt tokens that leave keys, as the static router keeps them.
        length: Prompt tokens.
        new_tokens: Tokens decoded, all of them kept.
        window: Columns that the block attends to, its own included; None for all.
    """
    if window is None:
        return list(range(kept, kept + new_tokens + 1))
    # The first token, if there is a gap between it and the most recent ones.
    first = int(kept < length)
    recent, slots = kept - first - 1, []
    for _ in range(new_tokens + 1):
        recent += 1
        # The rule of `BlockCache.slide`.
        if first + recent >= window + max(16, window // 4):
            first, recent = 0, min(recent, window - 1)
        slots.append(first + recent)
    return slots


@torch.inference_mode()
def peak_activation_bytes(
    model: SkippingModel, schedule: Sequence[float], batch: int, length: int, window: int = 0
) -> int:
    """Peak bytes of the tensors that a prefill, the next token's logits included, holds at once.

    The model's own blocks run on fake tensors, which need no memory, so that every family and kernel is counted as it
    is. Counted are keys and values, hidden states, everything inside a block, masks and routing; each storage once. Not
    counted are weights, token ids, workspaces of kernels, copies when sliding windows drop keys, and fragments of the
    allocator. Agrees with `AllocationTracker` to 1 % on the CPU; where experts run one by one, it is the peak if all
    tokens choose the same ones, and so the most that it can be.

    Args:
        model: The model.
        schedule: One sparsity per block, or a schedule with halves.
        batch: Rows.
        length: Tokens in each row.
        window: W of a dynamic router in mode `budget`; 0 for the static router.

    Raises:
        ScheduleError: The schedule has another number of blocks.
        DataError: The rows are longer than the model's context.
    """
    schedule = model.checked(schedule)
    check_lengths([length] * batch, model.context)
    router: Router = StaticRouter()
    if window:
        with torch.random.fork_rng(devices=()):
            router = _DecidesAsStatic(window).requires_grad_(False).to(model.device)
    with FakeTensorMode(allow_non_fake_inputs=True):
        ids_BL = torch.zeros(batch, length, dtype=torch.long, device=model.device)
    storages = _StorageMode()
    with storages:
        # As in `SkippingModel.prefill`. Routing works on real numbers, since shapes depend on them.
        lengths_B = torch.full((batch,), length, device=model.device)
        state = RoutingState.padded_right(lengths_B, length, model.keep_first)
        cache = FTPCache(model.family.windows(model.model))
        handler = PromptPass(model.model, model.family, schedule, router, state, state.real, cache)
        with replaced_forwards([part for part in model.model.modules() if _runs_one_by_one(part)], _same_experts):
            hidden_BLD = model.run(handler, ids_BL, past_key_values=cache, use_cache=True)
        last_hidden_BD = hidden_BLD[torch.arange(batch, device=model.device), lengths_B - 1]
        del hidden_BLD
        model.logits(last_hidden_BD)
    return storages.peak_bytes


def _runs_one_by_one(module: nn.Module) -> bool:
    """True for experts of transformers that are run one after the other, each on the tokens that chose it."""
    is_of_experts = hasattr(type(module), "_apply_gate") and hasattr(module, "gate_up_proj")
    implementation = getattr(getattr(module, "config", None), "_experts_implementation", None)
    return is_of_experts and implementation in (None, "eager")


def _same_experts(_: int, module: Any) -> Callable[..., Tensor]:
    """Computes what one expert computes if every token chooses it: which one does is not known without numbers."""

    def run(hidden_TD: Tensor, top_k_index: Tensor, top_k_weights: Tensor, *_: Any, **__: Any) -> Tensor:
        final_TD = torch.zeros_like(hidden_TD)
        # Held while all experts run.
        mask = torch.nn.functional.one_hot(top_k_index, module.num_experts + 1)
        places_T = torch.arange(len(hidden_TD), device=hidden_TD.device)
        inside_TD = hidden_TD[places_T]
        gate_up_T2 = torch.nn.functional.linear(inside_TD, _as_linear(module.gate_up_proj[0], inside_TD.shape[-1]))
        gated_TF = module._apply_gate(gate_up_T2)
        out_TD = torch.nn.functional.linear(gated_TF, _as_linear(module.down_proj[0], gated_TF.shape[-1]))
        out_TD = out_TD * top_k_weights[places_T, 0, None]
        final_TD.index_add_(0, places_T, out_TD.to(final_TD.dtype))
        del mask
        return final_TD

    return run


def _as_linear(weight: Tensor, width: int) -> Tensor:
    return weight if weight.shape[-1] == width else weight.T


class _DecidesAsStatic(DynamicRouter):
    """Takes the memory of a dynamic router, but decides by position: fake attention has no numbers."""

    def select(self, scores: Tensor, sparsity: float, state: RoutingState) -> Tensor:
        """See `ScoringRouter.select`."""
        super().select(scores, sparsity, state)
        return StaticRouter().keep(sparsity, state)


class AllocationTracker:
    """Context that measures the peak memory of tensors that are made in it.

    On the CPU it follows every storage that an operator of this thread returns until nothing refers to it, without
    workspaces of kernels. On a GPU it reads torch's allocator, which includes these, and resets its peak statistics.

    Attributes:
        peak_bytes: Peak bytes beyond those held when the context began; known when it has ended.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._storages = _StorageMode()
        self.peak_bytes = 0

    def __enter__(self) -> AllocationTracker:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            self._storages.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        if self._device.type == "cuda":
            self.peak_bytes = int(torch.cuda.max_memory_allocated(self._device) - self._before)
        else:
            self._storages.__exit__(*raised)  # type: ignore[no-untyped-call]
            self.peak_bytes = self._storages.peak_bytes


class _StorageMode(TorchDispatchMode):
    """Follows storages from the operator that returns them until nothing refers to them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held_bytes = 0
        self.peak_bytes = 0
        self._alive: dict[int, weakref.finalize[..., Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # In inference mode composite operators arrive whole; tensors between their parts count, too.
        # "prim" has queries such as a tensor's device.
        if func.namespace != "prim":
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if func is torch.ops.aten._grouped_mm.default and isinstance(args[0], FakeTensor):
            # For fake tensors torch has this product of experts in bfloat16 only.
            out = args[0].new_empty(args[0].shape[0], args[1].shape[-1])
        else:
            out = func(*args, **kwargs)
        # Tensors made from Python numbers first appear here, as their own argument.
        given = set() if func is torch.ops.aten.lift_fresh.default else set(map(id, _storages((args, kwargs))))
        for storage in _storages(out):
            if id(storage) not in given and id(storage) not in self._alive:
                self._follow(storage)
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        n_bytes = storage.nbytes()
        self.held_bytes += n_bytes
        self._alive[id(storage)] = weakref.finalize(storage, self._let_go, id(storage), n_bytes)
        self._alive[id(storage)].atexit = False

    def _let_go(self, key: int, n_bytes: int) -> None:
        del self._alive[key]
        self.held_bytes -= n_bytes


def _storages(nested: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]
