"""Tells Weights & Biases how a run goes."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence

import wandb

from search.config.run_config import RunConfig
from search.errors import ConfigError
from search.progress.trackers.entries import measured_figures, parameters
from search.progress.trackers.run_ids import keep_run, known_run
from studies import Measurement, StudyState

_NAME = "wandb"
_PROJECT = "ftp-search"
# The last is what wandb itself says of a process that Ctrl-C ended.
_EXIT_CODES = {StudyState.FINISHED: 0, StudyState.FAILED: 1, StudyState.STOPPED: 255}


class WandbObserver:
    """One W&B run for each study, in the project that `WANDB_PROJECT` names, or else in `ftp-search`.

    wandb's other environment variables hold, too: `WANDB_MODE=offline` keeps everything in the study's folder.

    Raises:
        ConfigError: Nobody is logged in, and the mode is not offline.
    """

    def __init__(self) -> None:
        # Silent, it neither prints nor asks for a login.
        settings = wandb.setup(wandb.Settings(silent=True)).settings
        if settings.mode in ("online", "shared"):
            try:
                wandb.login()
            except wandb.errors.UsageError as error:
                raise ConfigError(
                    "--track wandb needs a login: run `wandb login`, or set WANDB_MODE=offline to keep everything here."
                ) from error
            except wandb.errors.Error:
                # The server is away. It may be there again when the run begins, and no run waits for it.
                pass
        self._run: wandb.Run | None = None
        self._stages: set[str] = set()

    def began(self, name: str, config: RunConfig, stages: Sequence[str]) -> None:
        """Begin the study's run, or go on with it, and log the configuration."""
        folder = config.folder(name)
        identifier = known_run(folder, _NAME) or uuid.uuid4().hex[:12]
        keep_run(folder, _NAME, identifier)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=name,
            id=identifier,
            resume="allow",
            dir=folder,
            reinit="create_new",
            settings=wandb.Settings(console="off"),
        )
        self._stages = set()
        self._run.config.update(parameters(name, config), allow_val_change=True)

    def stage_changed(self, stage: str, state: StudyState) -> None:
        """Put the stage's state into the summary."""
        self._going.summary[f"stage/{stage}"] = str(state)

    def figures(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """Log metrics such as `search/hypervolume`, against `search/step`."""
        if stage not in self._stages:
            # W&B's own step would count over all stages.
            self._stages.add(stage)
            self._going.define_metric(f"{stage}/step", hidden=True)
            self._going.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._going.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in figures.items()}})

    def measured(self, measurements: Sequence[Measurement]) -> None:
        """Put figures such as `test/refined/accuracy` into the summary."""
        self._going.summary.update(measured_figures(measurements))

    def ended(self, state: StudyState) -> None:
        """Finish the run, as failed if it did not end well; the summary's `state` says how it ended."""
        self._going.summary["state"] = str(state)
        self._going.finish(exit_code=_EXIT_CODES.get(state, 0))
        self._run = None

    @property
    def _going(self) -> wandb.Run:
        assert self._run is not None
        return self._run
