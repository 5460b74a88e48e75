"""Routers: which tokens of a prompt run a block.

A router sees the prompt alone, never what follows it, and decides block by block from what earlier blocks left behind,
or for all blocks at once.
"""

from ftp_core.routers.comparison import HiddenRouter, LocalRouter, RecurrentRouter
from ftp_core.routers.files import (
    build_router,
    check_router_finite,
    describe_router,
    register_router,
    router_from_bytes,
    router_kinds,
    router_to_bytes,
)
from ftp_core.routers.fixed import RandomRouter, StaticRouter
from ftp_core.routers.gates import GateRouter
from ftp_core.routers.one_pass import OnePassRouter
from ftp_core.routers.protocol import Router
from ftp_core.routers.scoring import DEFAULT_WINDOW, FEATURES, FEATURES_OF_HALVES, DynamicRouter, ScoringRouter
from ftp_core.routers.state import DecodeState, RoutingState

__all__ = [
    "DEFAULT_WINDOW",
    "FEATURES",
    "FEATURES_OF_HALVES",
    "DecodeState",
    "DynamicRouter",
    "GateRouter",
    "HiddenRouter",
    "LocalRouter",
    "OnePassRouter",
    "RandomRouter",
    "RecurrentRouter",
    "Router",
    "RoutingState",
    "ScoringRouter",
    "StaticRouter",
    "build_router",
    "check_router_finite",
    "describe_router",
    "register_router",
    "router_from_bytes",
    "router_kinds",
    "router_to_bytes",
]
