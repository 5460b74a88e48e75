"""Tells MLflow how a run goes."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from search.config.run_config import RunConfig
from search.progress.trackers.entries import measured_figures, parameters
from search.progress.trackers.run_ids import keep_run, known_run
from studies import Measurement, StudyState

_NAME = "mlflow"
_EXPERIMENT = "ftp-search"
# Of parameters in one request.
_MOST_AT_ONCE = 100
_STATUS = {StudyState.FINISHED: "FINISHED", StudyState.FAILED: "FAILED", StudyState.STOPPED: "KILLED"}


class MlflowObserver:
    """One MLflow run for each study, in the store and experiment that MLflow's own environment variables name.

    Without them the store is MLflow's default, and the experiment `ftp-search`.
    """

    def __init__(self) -> None:
        # It tells of every table that it makes in a new store.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        self._client = MlflowClient()
        self._run = ""

    def began(self, name: str, config: RunConfig, stages: Sequence[str]) -> None:
        """Begin the study's run, or go on with it, and log the configuration."""
        folder = config.folder(name)
        known = known_run(folder, _NAME)
        if known is not None and self._exists(known):
            self._run = known
            self._client.update_run(known, status="RUNNING")
        else:
            self._run = self._client.create_run(self._experiment(), run_name=name).info.run_id
            keep_run(folder, _NAME, self._run)
        self._log_parameters(parameters(name, config))

    def stage_changed(self, stage: str, state: StudyState) -> None:
        """Tag the run with the stage's state."""
        self._client.set_tag(self._run, f"stage.{stage}", str(state))

    def figures(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """Log metrics such as `search/hypervolume`."""
        self._log_metrics({f"{stage}/{name}": value for name, value in figures.items()}, step)

    def measured(self, measurements: Sequence[Measurement]) -> None:
        """Log metrics such as `test/refined/accuracy`."""
        self._log_metrics(measured_figures(measurements), 0)

    def ended(self, state: StudyState) -> None:
        """End the run as finished, failed, or killed if it was stopped."""
        self._client.set_terminated(self._run, _STATUS.get(state, "FINISHED"))

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        return str(self._client.create_experiment(name) if found is None else found.experiment_id)

    def _exists(self, run: str) -> bool:
        try:
            return bool(self._client.get_run(run).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _log_parameters(self, values: Mapping[str, object]) -> None:
        """Log parameters; MLflow never changes one, so what is different in a resumed study becomes a tag."""
        known = self._client.get_run(self._run).data.params
        new = [Param(name, str(value)) for name, value in values.items() if name not in known]
        for start in range(0, len(new), _MOST_AT_ONCE):
            self._client.log_batch(self._run, params=new[start : start + _MOST_AT_ONCE])
        changed = [
            RunTag(f"resumed.{name}", str(value))
            for name, value in values.items()
            if known.get(name, str(value)) != str(value)
        ]
        self._client.log_batch(self._run, tags=changed)

    def _log_metrics(self, figures: Mapping[str, float], step: int) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [Metric(name, value, now_ms, step) for name, value in figures.items()]
        self._client.log_batch(self._run, metrics=metrics)
