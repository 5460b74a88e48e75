"""Checks that a schedule, a router and routed decoding go together in a pruned model."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from ftp_core.errors import ModelError
from ftp_core.routers import Router
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.families import family_of
from ftp_core.skipping.halves import names_of_halves
from ftp_core.skipping.skipping_model import check_schedule


def fitting_schedule(values: Sequence[float], base: PreTrainedModel) -> SparsitySchedule:
    """Returns the schedule of a dense model that numbers stand for: see `SparsitySchedule.of`.

    Raises:
        ScheduleError: They are no schedule of so many blocks.
        ModelError: It tells halves of blocks apart, but the model's blocks only skip as a whole.
    """
    family = family_of(base.config)
    n_blocks = len(family.blocks_of(base))
    schedule = SparsitySchedule.of(values, n_blocks)
    check_schedule(schedule, n_blocks)
    if not schedule.is_plain:
        names_of_halves(family, base.config.model_type)
    return schedule


def check_decoding(decode_sparsity: float, schedule: SparsitySchedule, router: Router) -> None:
    """Raises `ModelError` if decoded tokens are to skip that cannot be routed."""
    if decode_sparsity == 0:
        return
    if not schedule.is_plain:
        raise ModelError(
            f"decode_sparsity is {decode_sparsity}, but decoded tokens are routed for whole blocks alone: set it to 0, "
            "or give a schedule with one sparsity per block."
        )
    if not router.routes_decoding:
        raise ModelError(f"A {router.kind} router cannot route decoded tokens: set decode_sparsity to 0.")
