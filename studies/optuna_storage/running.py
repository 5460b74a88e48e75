"""Holds the parameters of running trials for a moment, so that they reach the database together."""

from __future__ import annotations

import logging
import threading
import time

from optuna.trial import FrozenTrial
from sqlalchemy.engine import Connection

from studies.errors import StudiesError
from studies.sql.database import Database
from studies.sql.packing import pack_params
from studies.sql.rows import write_params

_log = logging.getLogger(__name__)

# How long parameters of a running trial may wait in memory for those that follow them, and how long a trial that nobody
# here has changed is taken to be as it was begun.
_HOLD_S = 0.05


class _Begun:
    """A running trial that was begun here: its parameters, the last of which may not be in the database yet."""

    def __init__(self, study_id: int) -> None:
        self.study_id = study_id
        self.ids: dict[str, int] = {}
        self.values: list[float] = []

    def packed(self) -> bytes:
        return pack_params(tuple(self.ids.values()), self.values)


class RunningTrials:
    """The running trials that were begun through one storage; threads may share it.

    Args:
        database: Database of the studies.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        # Never held while a transaction is waited for, else two threads could wait for each other.
        self._lock = threading.RLock()
        self._begun: dict[int, _Begun] = {}
        # Of those, the trials whose parameters the database does not have yet.
        self._held: set[int] = set()
        # Trials as they were begun, and when that was: whoever begins one asks for it next.
        self._fresh: dict[int, tuple[FrozenTrial, float]] = {}
        self._timer: threading.Timer | None = None

    def begin(self, study_id: int, trial: FrozenTrial) -> None:
        """Note that a trial was begun here, and has no parameters yet."""
        with self._lock:
            self._begun[trial._trial_id] = _Begun(study_id)
            self._fresh[trial._trial_id] = (trial, time.monotonic())

    def fresh(self, trial_id: int) -> FrozenTrial | None:
        """A trial as it was begun a moment ago, once, unless something was written since."""
        with self._lock:
            trial, begun_at = self._fresh.pop(trial_id, (None, 0.0))
        return trial if time.monotonic() - begun_at < _HOLD_S else None

    def study_of(self, trial_id: int) -> int | None:
        """The study of a trial that was begun here; None for others."""
        begun = self._begun.get(trial_id)
        return None if begun is None else begun.study_id

    def hold(self, trial_id: int, name: str, distribution: int, value: float) -> bool:
        """Keep a new parameter of a trial that was begun here, to be written with others.

        Args:
            trial_id: The trial's.
            name: Name of the parameter.
            distribution: Number of its distribution.
            value: As Optuna stores it.

        Returns:
            Whether that was possible: the trial was begun here, and has no such parameter.
        """
        with self._lock:
            begun = self._begun.get(trial_id)
            if begun is None or name in begun.ids:
                return False
            self._fresh.pop(trial_id, None)
            begun.ids[name] = distribution
            begun.values.append(value)
            self._held.add(trial_id)
            if self._timer is None:
                self._timer = threading.Timer(_HOLD_S, self._release_late)
                self._timer.daemon = True
                self._timer.start()
            return True

    def written(self, trial_id: int, ids: dict[str, int], values: list[float]) -> None:
        """Note what another way of writing made of a trial's parameters."""
        begun = self._begun.get(trial_id)
        if begun is not None:
            begun.ids, begun.values = ids, values

    def held(self, trial_id: int) -> bytes | None:
        """The parameters of a trial, packed, if some of them wait."""
        with self._lock:
            return self._begun[trial_id].packed() if trial_id in self._held else None

    def release(self) -> None:
        """Write the parameters that wait.

        Raises:
            StorageError: See `Database.write`.
        """
        with self._lock:
            self._fresh.clear()
            held = {trial_id: self._begun[trial_id].packed() for trial_id in self._held}
        if not held:
            return

        def work(connection: Connection) -> None:
            for trial_id, packed in held.items():
                write_params(connection, trial_id, packed)

        self._database.write_once(work)
        with self._lock:
            for trial_id, packed in held.items():
                begun = self._begun.get(trial_id)
                if begun is None or begun.packed() == packed:
                    self._held.discard(trial_id)

    def changed_state(self, trial_id: int, finished: bool) -> None:
        """Note that a trial's state was written, with its parameters."""
        with self._lock:
            self._held.discard(trial_id)
            self._fresh.pop(trial_id, None)
            if finished:
                self._begun.pop(trial_id, None)

    def _release_late(self) -> None:
        with self._lock:
            self._timer = None
        try:
            self.release()
        except StudiesError as error:
            # Nobody waits for this thread; the trial's next write says what is wrong.
            _log.warning("Parameters of a running trial are not written yet: %s", error)
