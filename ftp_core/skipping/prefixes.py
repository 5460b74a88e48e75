"""Keeps results behind blocks, so that schedules that begin alike share the work of the blocks they have in common.

With a fixed router, hidden states behind block i depend on what the schedule says of blocks 0 to i alone, and on no
router while these skip nothing. Keys and values of a block are read in that block only, so hidden states, and what the
router remembers, are all that the blocks behind it need.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from ftp_core.routers import Router, RoutingState
from ftp_core.schedule import BlockSparsity, SparsitySchedule
from ftp_core.skipping.interception import BlockCall, BlockHandler

_PASSES = 3


@dataclass(frozen=True, eq=False)
class BlockState:
    """A forward pass as it stands behind one block.

    Attributes:
        hidden: Hidden states `[B, L, D]`.
        attention: `RoutingState.attention` of prompts `[B, L]`; None for continuations, which are not routed.
        memory: `RoutingState.memory` of prompts.
    """

    hidden: Tensor
    attention: Tensor | None = None
    memory: Tensor | None = None

    @property
    def n_bytes(self) -> int:
        """Memory held; what states share counts for each of them."""
        held = (self.hidden, self.attention, self.memory)
        return sum(tensor.untyped_storage().nbytes() for tensor in held if tensor is not None)


@dataclass
class Passage:
    """One forward pass that may begin behind some of the blocks, and leaves states behind.

    Attributes:
        start: Number of blocks whose results are known: they do not run.
        known: State behind them; None if there are none.
        wanted: Indices of blocks behind which the state is to be kept.
        left: States kept, by index of the block; filled as the blocks run.
    """

    start: int = 0
    known: BlockState | None = None
    wanted: Container[int] = ()
    left: dict[int, BlockState] = field(default_factory=dict)

    def through(self, handler: BlockHandler, routing: RoutingState | None = None) -> BlockHandler:
        """Makes a handler that runs the blocks from `start` on; those before hand the known hidden states on.

        Args:
            handler: Handler that runs a block.
            routing: Routing of the prompts, which is set to what it was; None for continuations.
        """
        known = self.known
        if known is not None and routing is not None:
            assert known.attention is not None
            routing.attention, routing.memory = known.attention, known.memory

        def handle(index: int, call: BlockCall) -> Tensor:
            if index < self.start:
                assert known is not None
                return known.hidden
            hidden = handler(index, call)
            if index in self.wanted:
                seen = () if routing is None else (routing.attention, routing.memory)
                self.left[index] = BlockState(hidden, *seen)
            return hidden

        return handle


@dataclass(frozen=True)
class Scope:
    """Inputs of states, beside a schedule's beginning: those of different scopes never mix.

    Attributes:
        batches: Key of the batches of inputs.
        router: Router of the prompts; its weights must not change while states are kept.
        choices: True if multiple-choice continuations run, too.
    """

    batches: Hashable
    router: Router
    choices: bool


# Batches, choices, who decided, the schedule's beginning, and how many queries were heard behind it.
_Key = tuple[Hashable, bool, Router | None, tuple[BlockSparsity, ...], int]
# For each batch, the states of its passes; None for a pass that no block runs in.
_Node = list[tuple[BlockState | None, ...]]


def _key(scope: Scope, schedule: SparsitySchedule, n_blocks: int) -> _Key:
    """Key of the state behind the first `n_blocks` blocks, which are not all."""
    prefix, following = schedule.blocks[:n_blocks], schedule.blocks[n_blocks]
    # Where nothing was skipped, no router had a say.
    decided_by = None if all(entry.is_dense for entry in prefix) else scope.router
    # Attention in a block is heard only if the next block asks for it.
    heard = 0 if following.is_dense else scope.router.window
    return scope.batches, scope.choices, decided_by, prefix, heard


@dataclass
class Path:
    """A schedule's way through a set of batches.

    Attributes:
        start: Number of blocks whose results are known.
        known: States behind them; None if there are none.
        wanted: Indices of blocks behind which states are to be kept.
    """

    start: int
    known: _Node | None
    wanted: range
    _passages: list[tuple[Passage, Passage, Passage]] = field(default_factory=list)

    def passages(self) -> tuple[Passage, Passage, Passage]:
        """Begins three forward passes over the next batch: its prompts, their answers, and their choices."""
        known = self.known[len(self._passages)] if self.known else (None,) * _PASSES
        of_prompts, of_answers, of_choices = (Passage(self.start, state, self.wanted) for state in known)
        self._passages.append((of_prompts, of_answers, of_choices))
        return self._passages[-1]

    def node(self, index: int) -> _Node:
        """States behind block `index` of all batches."""
        return [tuple(passage.left.get(index) for passage in passages) for passages in self._passages]


class PrefixStore:
    """States behind the first blocks of schedules; the least recently used make room for others.

    A state is kept for whole sets of batches, so that a schedule finds the same blocks known in all of them. Every use
    of a schedule also renews the shorter beginnings of it, which more schedules share, so that these stay longest.

    Args:
        max_bytes: Most memory to hold, states in the making included; 0 keeps nothing.

    Attributes:
        n_bytes: Memory held.
        blocks_run: Number of block computations made, one for each block and item.
        blocks_reused: Number of block computations whose results were known.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self.blocks_run = 0
        self.blocks_reused = 0
        # The least recently used comes first.
        self._nodes: OrderedDict[_Key, _Node] = OrderedDict()

    def __len__(self) -> int:
        """Number of beginnings of schedules that are known."""
        return len(self._nodes)

    def longest(self, scope: Scope, schedule: SparsitySchedule) -> int:
        """Number of the schedule's first blocks that are known; never all, as the last one's result is not kept."""
        lengths = range(schedule.n_blocks - 1, 0, -1)
        return next((length for length in lengths if _key(scope, schedule, length) in self._nodes), 0)

    @contextmanager
    def path(self, scope: Scope, schedule: SparsitySchedule, n_items: int, node_bytes: int) -> Iterator[Path]:
        """Context in which a schedule runs through all items of the scope; if it ends well, its states are kept.

        `node_bytes` estimates the memory that the states behind one block take.
        """
        start, known = self.longest(scope, schedule), None
        if start:
            key = _key(scope, schedule, start)
            self._nodes.move_to_end(key)
            known = self._nodes[key]
        n_more = max(0, self.max_bytes // max(1, node_bytes) - (known is not None))
        path = Path(start, known, range(start, schedule.n_blocks - 1)[:n_more])
        # Room is made beforehand, so that what is in the making counts. The state in use is the last to go.
        self._shrink(self.max_bytes - len(path.wanted) * node_bytes)
        yield path
        for index in path.wanted:
            node = self._nodes[_key(scope, schedule, index + 1)] = path.node(index)
            self.n_bytes += _node_bytes(node)
        for length in range(schedule.n_blocks - 1, 0, -1):
            if (key := _key(scope, schedule, length)) in self._nodes:
                self._nodes.move_to_end(key)
        self._shrink(self.max_bytes)
        self.blocks_run += (schedule.n_blocks - start) * n_items
        self.blocks_reused += start * n_items

    def forget(self, router: Router) -> None:
        """Forgets what one router, the very object that evaluations were given, decided."""
        for key in [key for key in self._nodes if key[2] is router]:
            self.n_bytes -= _node_bytes(self._nodes.pop(key))

    def clear(self) -> None:
        """Forgets all states, not the counts."""
        self._shrink(0)

    def _shrink(self, max_bytes: int) -> None:
        while self._nodes and self.n_bytes > max_bytes:
            _, node = self._nodes.popitem(last=False)
            self.n_bytes -= _node_bytes(node)


def _node_bytes(node: _Node) -> int:
    return sum(state.n_bytes for states in node for state in states if state is not None)
