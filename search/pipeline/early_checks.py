"""Checks a configuration without loading torch, transformers or Ray, which takes seconds."""

from __future__ import annotations

import os
from pathlib import Path

from ftp_core.loading.model_source import locate
from ftp_core.sources.local import check_path
from ftp_core.sources.source import parse_sources
from search.config.machine import n_gpus
from search.config.run_config import RunConfig
from search.errors import ConfigError
from search.evaluators.ray_address import check_address, check_home
from search.evaluators.worker_handle import check_fit


def check_writable(folder: Path) -> None:
    """Refuses a folder of results that is a file, or cannot be made, with a ConfigError."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ConfigError(f"{existing} is a file: expected a folder to write to; choose another with --out.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"The folder {existing} is not writable: choose another with --out.")


def check_inputs(config: RunConfig) -> None:
    """Checks what a new study is given: that model and data can be opened, and what `check_where` does."""
    if config.asked_trials:
        raise ConfigError(
            f"Trial {min(config.asked_trials)} is asked for, but a new study has none yet: give --also-measure and "
            "--select-trial to `ftp-search resume` once there are trials."
        )
    check_where(config)
    locate(config.reference)
    for data in filter(None, (config.data, config.test_data)):
        for source in parse_sources(data):
            for path in source.paths:
                check_path(path)


def check_where(config: RunConfig) -> None:
    """Checks that this machine has the cores for its workers and a home for Ray, or that a cluster answers."""
    if config.ray_address is None:
        if config.device == "cpu" or (config.device == "auto" and n_gpus() == 0):
            check_fit(config.workers)
        check_home()
    elif ":" in config.device:
        raise ConfigError(
            f"--device is {config.device!r}, but on a cluster Ray assigns GPUs: give --device cuda, or leave out "
            "--ray-address."
        )
    check_address(config.ray_address)
