"""Routers that tests share."""

from __future__ import annotations

import torch

from ftp_core.routers import DEFAULT_WINDOW, DynamicRouter


def random_router(seed: int = 0, window: int = DEFAULT_WINDOW) -> DynamicRouter:
    """A dynamic router whose every weight is drawn: it listens to all features."""
    router, generator = DynamicRouter(window), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.normal_(generator=generator)
    return router
