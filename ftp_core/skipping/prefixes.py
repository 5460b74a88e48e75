"""What is known behind blocks, so that schedules that begin alike share the work of the blocks they have in common.

With a fixed router, hidden states behind block i depend on s_0 ... s_i alone, and on no router while these are 0. Keys
and values of a block are read in that block only, so hidden states, and what the router remembers, are all that the
blocks behind it need.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from ftp_core.routers import Router, RoutingState
from ftp_core.schedule import SparsitySchedule
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
        """Memory that is held; what states share counts for each of them."""
        held = (self.hidden, self.attention, self.memory)
        return sum(tensor.untyped_storage().nbytes() for tensor in held if tensor is not None)


@dataclass
class Passage:
    """One forward pass that may begin behind some of the blocks, and leaves states behind.

    Attributes:
        start: Blocks whose results are known: they do not run.
        known: The state behind them; None if there are none.
        wanted: Indices of blocks behind which the state shall be kept.
        left: The states kept, by index of the block; filled as the blocks run.
    """

    start: int = 0
    known: BlockState | None = None
    wanted: Container[int] = ()
    left: dict[int, BlockState] = field(default_factory=dict)

    def through(self, handler: BlockHandler, routing: RoutingState | None = None) -> BlockHandler:
        """The handler for the blocks that run; those before them hand the known hidden states on.

        Args:
            handler: Runs a block.
            routing: The prompts' routing, which is set to what it was; None for continuations.
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
    """What states are of, beside a schedule's beginning: those of different scopes never mix.

    Attributes:
        batches: Stands for the batches of inputs.
        router: Names the kept tokens; its weights must not change while states are kept.
        choices: Whether multiple-choice continuations run, too.
    """

    batches: Hashable
    router: Router
    choices: bool


# Batches, choices, who decided, the schedule's beginning, and how many queries were heard behind it.
_Key = tuple[Hashable, bool, Router | None, tuple[float, ...], int]
# Of each batch, the states of its passes; None of a pass that no block runs in.
_Node = list[tuple[BlockState | None, ...]]


def _key(scope: Scope, schedule: SparsitySchedule, n_blocks: int) -> _Key:
    """Of the state behind the first `n_blocks` blocks, which are not all."""
    prefix = schedule[:n_blocks]
    # Where nothing was skipped, no router had a say.
    decided_by = scope.router if any(prefix) else None
    # Attention in a block is heard only if the next block asks for it.
    heard = scope.router.window if schedule[n_blocks] > 0 else 0
    return scope.batches, scope.choices, decided_by, prefix, heard


class Path:
    """A schedule's way through a set of batches.

    Attributes:
        start: Blocks whose results are known.
        wanted: Blocks behind which states shall be kept.
    """

    def __init__(self, start: int, known: _Node | None, wanted: range) -> None:
        self.start = start
        self.wanted = wanted
        self._known = known
        self._passages: list[list[Passage]] = []

    def passages(self) -> tuple[Passage, Passage, Passage]:
        """Three forward passes over the next batch: its prompts, their answers, and their choices."""
        known = self._known[len(self._passages)] if self._known else (None,) * _PASSES
        of_prompts, of_answers, of_choices = (Passage(self.start, state, self.wanted) for state in known)
        self._passages.append([of_prompts, of_answers, of_choices])
        return of_prompts, of_answers, of_choices

    def node(self, index: int) -> _Node:
        """The states behind block `index` of all batches."""
        return [tuple(passage.left.get(index) for passage in passages) for passages in self._passages]


class PrefixStore:
    """States behind the first blocks of schedules; those that were not used for longest make room for others.

    A state is kept for whole sets of batches, so that a schedule finds the same blocks known in all of them. Every use
    of a schedule also renews the shorter beginnings of it, which more schedules share, so that these stay longest.

    Args:
        max_bytes: Most memory to hold, that of states in the making included; 0 keeps nothing.

    Attributes:
        n_bytes: Memory held.
        blocks_run: Block computations that were made, one for each block and item.
        blocks_reused: Block computations whose results were known.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self.blocks_run = 0
        self.blocks_reused = 0
        # The one that was not used for longest comes first.
        self._nodes: OrderedDict[_Key, _Node] = OrderedDict()

    def __len__(self) -> int:
        """How many beginnings of schedules are known."""
        return len(self._nodes)

    def longest(self, scope: Scope, schedule: SparsitySchedule) -> int:
        """How many of the schedule's first blocks are known; never all, as the last one's result is not kept."""
        lengths = range(len(schedule) - 1, 0, -1)
        return next((length for length in lengths if _key(scope, schedule, length) in self._nodes), 0)

    @contextmanager
    def path(self, scope: Scope, schedule: SparsitySchedule, n_items: int, node_bytes: int) -> Iterator[Path]:
        """Context in which a schedule runs through all batches of the scope; what it leaves is kept if it ends well.

        Args:
            scope: What is run.
            schedule: One sparsity per block.
            n_items: Items in all batches, for the counts.
            node_bytes: About the memory that states behind one block take.
        """
        start, known = self.longest(scope, schedule), None
        if start:
            key = _key(scope, schedule, start)
            self._nodes.move_to_end(key)
            known = self._nodes[key]
        n_more = max(0, self.max_bytes // max(1, node_bytes) - (known is not None))
        path = Path(start, known, range(start, len(schedule) - 1)[:n_more])
        # Room is made beforehand, so that what is in the making counts. The state in use is the last to go.
        self._shrink(self.max_bytes - len(path.wanted) * node_bytes)
        yield path
        for index in path.wanted:
            self._add(_key(scope, schedule, index + 1), path.node(index))
        for length in range(len(schedule) - 1, 0, -1):
            if (key := _key(scope, schedule, length)) in self._nodes:
                self._nodes.move_to_end(key)
        self._shrink(self.max_bytes)
        self.blocks_run += (len(schedule) - start) * n_items
        self.blocks_reused += start * n_items

    def forget(self, router: Router) -> None:
        """Forget what a router decided, which will not be asked for again.

        Args:
            router: The very one that evaluations were given.
        """
        for key in [key for key in self._nodes if key[2] is router]:
            self.n_bytes -= _node_bytes(self._nodes.pop(key))

    def clear(self) -> None:
        """Forget all states, not the counts."""
        self._shrink(0)

    def _add(self, key: _Key, node: _Node) -> None:
        self._nodes[key] = node
        self.n_bytes += _node_bytes(node)

    def _shrink(self, max_bytes: int) -> None:
        while self._nodes and self.n_bytes > max_bytes:
            _, node = self._nodes.popitem(last=False)
            self.n_bytes -= _node_bytes(node)


def _node_bytes(node: _Node) -> int:
    return sum(state.n_bytes for states in node for state in states if state is not None)
