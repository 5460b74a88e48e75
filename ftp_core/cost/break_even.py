"""Runs blocks whole where skipping tokens takes no less time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from transformers.cache_utils import Cache

from ftp_core.cost.profile import LatencyProfile, router_kind
from ftp_core.cost.shape_profile import RouterKind
from ftp_core.routers import Router
from ftp_core.schedule import BlockSparsity, SparsitySchedule
from ftp_core.skipping.cache import FTPCache

_LOG = logging.getLogger(__name__)


class BreakEven:
    """Turns a schedule into one that never skips at a loss, by a profile of the model on this machine.

    Gathering, scattering and routing take time that a few skipped tokens of a short input do not save. A block that
    runs whole brings the model nearer to the dense one, and costs only the memory of its keys.
    """

    def __init__(self, profile: LatencyProfile) -> None:
        self.profile = profile
        self._known: dict[tuple[SparsitySchedule, int, int, RouterKind], SparsitySchedule] = {}
        self._said: set[tuple[str, ...]] = set()

    def of_pass(self, schedule: SparsitySchedule, first: Any, cache: Cache | None, router: Router) -> SparsitySchedule:
        """The schedule of a forward pass whose input is `first` `[B, L, ...]`, behind what a cache holds."""
        if cache is None or cache.get_seq_length() == 0:
            n_rows, width = first.shape[:2]
            return self.schedule(schedule, n_rows, width, router)
        # A prompt that ran every block whole has left the dense model's own cache behind.
        if not isinstance(cache, FTPCache):
            return SparsitySchedule.uniform(0.0, schedule.n_blocks)
        return cache.schedule or schedule

    def schedule(self, schedule: Sequence[float], batch: int, length: int, router: Router) -> SparsitySchedule:
        """The schedule with 0 for blocks that take as long on their kept tokens as on all, by the nearest shape.

        The same holds for halves that skip apart. Logs these blocks and halves once.
        """
        kind = router_kind(router)
        schedule = SparsitySchedule.of(schedule, len(self.profile.blocks))
        rows, tokens = self.profile.nearest_shape(batch, length)
        key = (schedule, rows, tokens, kind)
        if key not in self._known:
            self._known[key] = paying = self.profile.worthwhile(schedule, rows, tokens, kind)
            pairs = enumerate(zip(schedule.blocks, paying.blocks, strict=True))
            whole = tuple(_named(index, asked, runs) for index, (asked, runs) in pairs if asked != runs)
            if whole and whole not in self._said:
                self._said.add(whole)
                _LOG.warning(
                    "Blocks %s run whole on inputs of %d x %d tokens: skipping would not save time there.",
                    ", ".join(whole),
                    batch,
                    length,
                )
        return self._known[key]


def _named(index: int, asked: BlockSparsity, runs: BlockSparsity) -> str:
    """A block that runs whole, or its half that does."""
    if runs.is_dense:
        return str(index)
    return f"{index} ({'attention' if asked.attention > runs.attention else 'MLP'})"
