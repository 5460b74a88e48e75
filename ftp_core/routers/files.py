"""Routers as files: safetensors whose metadata says which router it is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from ftp_core.errors import ModelError
from ftp_core.routers.comparison import HiddenRouter, LocalRouter, RecurrentRouter
from ftp_core.routers.fixed import RandomRouter, StaticRouter
from ftp_core.routers.one_pass import OnePassRouter
from ftp_core.routers.protocol import Router
from ftp_core.routers.scoring import DynamicRouter, ScoringRouter
from ftp_core.schedule import SparsitySchedule

_METADATA = "router"
_KINDS: dict[str, Callable[..., Router]] = {
    router.kind: router
    for router in (StaticRouter, RandomRouter, DynamicRouter, LocalRouter, HiddenRouter, RecurrentRouter, OnePassRouter)
}


def register_router(router: type[Router]) -> None:
    """Lets routers of another class be saved and loaded with models.

    Args:
        router: Class with a `kind` of its own, made by keyword from its `options` (if any). Trainable ones derive from
            `ScoringRouter`.

    Raises:
        ModelError: Another class has this `kind` already.
    """
    kind = str(router.kind)
    if _KINDS.get(kind, router) is not router:
        raise ModelError(f"There is another router {kind!r} already: name yours differently.")
    _KINDS[kind] = router


def router_kinds() -> tuple[str, ...]:
    """Names of all routers."""
    return tuple(_KINDS)


def describe_router(router: Router) -> dict[str, Any]:
    """Describes a router without its weights, as plain values."""
    facts: dict[str, Any] = {"kind": router.kind, "options": dict(getattr(router, "options", {}))}
    if isinstance(router, ScoringRouter):
        facts["trained_for"] = router.trained_for
        if router.thresholds is not None and router.threshold_schedule is not None:
            facts["thresholds"] = list(router.thresholds)
            facts["threshold_schedule"] = router.threshold_schedule.to_json()
    return facts


def build_router(facts: dict[str, Any]) -> Router:
    """Makes the router that `describe_router` described, with fresh weights.

    Raises:
        ModelError: There is no such router.
    """
    kind, options = facts.get("kind"), dict(facts.get("options", {}))
    try:
        router = _KINDS[str(kind)](**options)
    except KeyError:
        raise ModelError(
            f"There is no router {kind!r}: choose of {', '.join(router_kinds())}, or add it with "
            "ftp_core.register_router."
        ) from None
    except TypeError as error:
        raise ModelError(f"A {kind} router cannot be made with {options}: {error}.") from error
    if isinstance(router, ScoringRouter):
        router.trained_for = facts.get("trained_for")
        thresholds = facts.get("thresholds")
        if thresholds is not None:
            if not all(math.isfinite(float(threshold)) for threshold in thresholds):
                raise ModelError(f"The router's thresholds {thresholds} are not all finite: calibrate it again.")
            router.set_thresholds(thresholds, SparsitySchedule.from_json(facts["threshold_schedule"]))
    return router


def router_to_bytes(router: ScoringRouter) -> bytes:
    """Writes a router as a safetensors file."""
    weights = {name: tensor.detach().float().contiguous().cpu() for name, tensor in router.state_dict().items()}
    # One entry: safetensors writes several in an order of its own, and equal routers should be equal files.
    data: bytes = save_safetensors(weights, metadata={_METADATA: json.dumps(describe_router(router), sort_keys=True)})
    return data


def router_from_bytes(data: bytes) -> ScoringRouter:
    """Reads a router that `router_to_bytes` wrote.

    Raises:
        ModelError: The bytes are not a router, or its weights are not finite.
    """
    try:
        header = int.from_bytes(data[:8], "little")
        router = build_router(json.loads(json.loads(data[8 : 8 + header])["__metadata__"][_METADATA]))
        assert isinstance(router, ScoringRouter)
        router.load_state_dict(load_safetensors(data))
    except Exception as error:  # a file that is no router fails wherever it happens to differ from one
        raise ModelError(f"These weights are not a router: {error}. Distil the router again.") from error
    check_router_finite(router)
    return router


def check_router_finite(router: Router) -> None:
    """Raises `ModelError` if a weight of the router is NaN or infinite."""
    if isinstance(router, ScoringRouter):
        for name, tensor in router.state_dict().items():
            if not bool(torch.isfinite(tensor).all()):
                raise ModelError(f"Weight {name} of the {router.kind} router is not finite. Distil the router again.")
