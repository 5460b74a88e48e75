"""Writes how a run goes for TensorBoard."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from torch.utils.tensorboard import SummaryWriter

from search.config.run_config import RunConfig
from search.progress.trackers.entries import measured_figures, parameters
from search.progress.trackers.run_ids import keep_run, known_run
from studies import Measurement, StudyState

_NAME = "tensorboard"
_FLUSH_SECONDS = 10


class TensorboardObserver:
    """One folder of event files for each study, in `tensorboard` beside its report."""

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None
        self._n_changes = 0

    def began(self, name: str, config: RunConfig, stages: Sequence[str]) -> None:
        """Begin the study's folder, or go on with it, and write the configuration as a table."""
        folder = config.folder(name)
        run = known_run(folder, _NAME) or f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:4]}"
        keep_run(folder, _NAME, run)
        self._writer = SummaryWriter(str(folder / _NAME / run), flush_secs=_FLUSH_SECONDS)
        self._n_changes = 0
        rows = [f"| {key} | {value} |" for key, value in parameters(name, config).items()]
        self._text("config", "\n".join(["| option | value |", "| --- | --- |", *rows]))

    def stage_changed(self, stage: str, state: StudyState) -> None:
        """Write the stage's state as text."""
        self._text(f"stage/{stage}", str(state))

    def figures(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """Write scalars such as `search/hypervolume`."""
        self._scalars({f"{stage}/{name}": value for name, value in figures.items()}, step)

    def measured(self, measurements: Sequence[Measurement]) -> None:
        """Write scalars such as `test/refined/accuracy`."""
        self._scalars(measured_figures(measurements), 0)

    def ended(self, state: StudyState) -> None:
        """Write how it ended, and close the file."""
        self._text("state", str(state))
        assert self._writer is not None
        self._writer.close()
        self._writer = None

    def _text(self, tag: str, text: str) -> None:
        assert self._writer is not None
        self._writer.add_text(tag, text, self._n_changes)
        self._n_changes += 1

    def _scalars(self, figures: Mapping[str, float], step: int) -> None:
        assert self._writer is not None
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
