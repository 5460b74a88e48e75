"""State of a tuning: a folder with one file per trial, written atomically."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ftp_core.training.distillation_config import DistillationConfig
from search.errors import EvaluationError, SearchError
from studies.records.study_facts import TunedTrial

TRAINING_FILE = "training.safetensors"
"""Name of the file of a training in the checkpoints of trials."""
_SUBJECT, _TRIALS, _SCRATCH = "tuning.json", "trials", "scratch"


@dataclass(frozen=True)
class RouterTuning:
    """Result of a tuning.

    Attributes:
        best: The configuration with the lowest held-out KL among those that were trained to their end; the first of
            equal ones.
        trials: All trials in the order in which they began, without those that failed; the first one is the base
            configuration.
        seconds: Time that they took on their workers, over all runs if the tuning was resumed.
        training: File with the ended training of the best configuration, a `checkpoint` of `distill` that gives its
            router without another step; None if it is not there.
    """

    best: DistillationConfig
    trials: tuple[TunedTrial, ...]
    seconds: float = field(compare=False)
    training: Path | None = field(default=None, compare=False)


@dataclass(frozen=True)
class TuningEntry:
    """State of a trial.

    Attributes:
        number: From 0 without gaps.
        config: Its hyperparameters.
        state: `stopped` if others did better, `trained` to its end, `failed`, or else `begun`.
        steps: Steps done.
        held_out_kl: Lowest held-out KL so far.
        seconds: Time on its workers.
        checkpoint: Folder of its checkpoint, relative to the tuning's.
        error: Reason of its failure.
    """

    number: int
    config: Mapping[str, Any]
    state: Literal["begun", "stopped", "trained", "failed"] = "begun"
    steps: int = 0
    held_out_kl: float = math.inf
    seconds: float = 0.0
    checkpoint: str | None = None
    error: str | None = None

    @property
    def has_ended(self) -> bool:
        """True unless it still trains."""
        return self.state != "begun"


class TuningState:
    """The trials of one tuning, which outlive the process that trains them, however it ends.

    Args:
        folder: Folder of the files, created if missing.
        subject: Identity of the tuning as JSON; trials of another one do not compare.

    Raises:
        SearchError: The folder cannot be written to, or holds another tuning.
    """

    def __init__(self, folder: Path, subject: Mapping[str, Any]) -> None:
        self.folder = folder.absolute()
        path = self.folder / _SUBJECT
        try:
            for name in (_TRIALS, _SCRATCH):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            if not path.exists():
                _write(path, subject)
            known = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise SearchError(
                f"The router's tuning cannot be kept in {folder}: {error}. Give a folder that can be written to and "
                "holds nothing else."
            ) from error
        changed = [name for name, value in json.loads(json.dumps(subject)).items() if known.get(name) != value]
        if changed:
            raise SearchError(
                f"{folder} holds a tuning with another {', '.join(changed)}: give the same as then to go on with it, "
                "or remove the folder to start anew."
            )

    @property
    def scratch(self) -> Path:
        """Folder of temporary files of trials."""
        return self.folder / _SCRATCH

    def entries(self) -> dict[int, TuningEntry]:
        """All trials that were begun, by number."""
        files = sorted((self.folder / _TRIALS).glob("*.json"))
        entries = (TuningEntry(**json.loads(file.read_text())) for file in files)
        return {entry.number: entry for entry in entries}

    def write(self, entry: TuningEntry) -> None:
        """Writes the state of a trial."""
        _write(self.folder / _TRIALS / f"{entry.number:05d}.json", asdict(entry))

    def numbers_left(self, trials: int) -> list[int]:
        """Numbers of the trials that have not ended, of so many."""
        entries = self.entries()
        return [number for number in range(trials) if number not in entries or not entries[number].has_ended]

    def progress(self) -> tuple[int, float]:
        """Number of ended trials, and their lowest held-out KL; infinity for none."""
        kls = [entry.held_out_kl for entry in self.entries().values() if entry.has_ended]
        return len(kls), min(kls, default=math.inf)

    def done(self) -> float:
        """Number of ended trials, plus the finished shares of the others."""
        shares = TrialShares(self.scratch).read()
        return sum(1.0 if one.has_ended else shares.get(number, 0.0) for number, one in self.entries().items())

    def outcome(self, trials: int, base: DistillationConfig) -> RouterTuning:
        """Result of the ended trials.

        Args:
            trials: Number of trials that count.
            base: Base configuration.

        Raises:
            EvaluationError: None was trained to its end.
        """
        entries = [entry for number, entry in sorted(self.entries().items()) if number < trials]
        trained = [entry for entry in entries if entry.state == "trained"]
        if not trained:
            errors = [entry.error for entry in entries if entry.error is not None]
            raise EvaluationError(f"No router could be trained: {errors[0] if errors else 'no trial has ended'}")
        entries = [entry for entry in entries if entry.state in ("trained", "stopped")]
        best = min(trained, key=lambda entry: entry.held_out_kl)
        training = None if best.checkpoint is None else self.folder / best.checkpoint / TRAINING_FILE
        return RouterTuning(
            replace(base, **best.config),
            tuple(TunedTrial(entry.config, entry.held_out_kl, entry.steps, entry.seconds) for entry in entries),
            sum(entry.seconds for entry in entries),
            training if training is not None and training.is_file() else None,
        )


class TrialShares:
    """Progress of each trial between its reports, in files that its worker writes and the tuning reads.

    Args:
        folder: Folder of the files.
    """

    SECONDS = 1.0
    """Least time between two files of a trial."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._written_at = -math.inf

    def write(self, number: int, share: float) -> None:
        """Writes the share of a trial's work that is done, unless it did so a moment ago."""
        if time.monotonic() - self._written_at >= self.SECONDS:
            self._written_at = time.monotonic()
            _write(self._folder / f"{number}.share", share)

    def read(self) -> dict[int, float]:
        """The shares by the numbers of their trials."""
        return {int(file.stem): float(file.read_text()) for file in self._folder.glob("[0-9]*.share")}


def _write(path: Path, value: Mapping[str, Any] | float) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(partial, path)
