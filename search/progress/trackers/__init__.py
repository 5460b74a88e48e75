"""Trackers that can be told how a run goes: MLflow, Weights & Biases, TensorBoard.

A tracker's library is imported when its observer is made, by the one module that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ftp_core.extras import install_extra
from search.errors import ConfigError

if TYPE_CHECKING:
    from search.progress.observer import RunObserver

# Title and observer; the library is called as the tracker is.
_TRACKERS = {
    "mlflow": ("MLflow", "MlflowObserver"),
    "wandb": ("Weights & Biases", "WandbObserver"),
    "tensorboard": ("TensorBoard", "TensorboardObserver"),
}
TRACKERS = tuple(_TRACKERS)


def make_observers(names: str) -> list[RunObserver]:
    """Observers that tell trackers; which study it is, and where its files go, they hear as it begins.

    Args:
        names: Names of `TRACKERS`, separated by commas; empty for none.

    Raises:
        ConfigError: A tracker is unknown, its library is not installed or broken, or nobody is logged in to it.
    """
    wanted = dict.fromkeys(name.strip() for name in names.split(",") if name.strip())
    for name in wanted:
        if name not in _TRACKERS:
            raise ConfigError(f"--track is {name!r}: expected {', '.join(TRACKERS)}, or several with commas.")
    return [_make(name) for name in wanted]


def _make(name: str) -> RunObserver:
    title, observer_name = _TRACKERS[name]
    try:
        module = importlib.import_module(f"search.progress.trackers.{name}")
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] == name:
            raise ConfigError(f"--track {name} needs {title}: {install_extra(name)}") from error
        raise ConfigError(
            f"--track {name} cannot import {title}, which is installed: {error}. Try again after {install_extra(name)}"
        ) from error
    observer: RunObserver = getattr(module, observer_name)()
    return observer
