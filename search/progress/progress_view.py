"""Progress of long work: one live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from search.config.run_config import RunConfig
from search.progress.heartbeat import Heartbeat
from search.progress.observer import Observers, RunObserver
from search.progress.stage_list import StageList, duration
from studies import Measurement, StudyState
from studies.records.objectives import DEFAULT_COST, KL, objective, reference_text, shown_volume

_SECONDS_BETWEEN_LINES = 10.0
# Where nothing is said for so long, a line says that work goes on.
_SECONDS_OF_SILENCE, _SECONDS_BETWEEN_BEATS = 10.0, 2.0
# Steps may take minutes; so long a time says how fast they go.
_SPEED_OVER_SECONDS = 600.0
_REFRESHES_PER_SECOND = 4
# These stay true while later stages run.
_OF_THE_FRONT = ("front", "hypervolume", "reference_kl", "reference_cost", "knee_kl", "knee_cost")


class Stage:
    """One piece of work with a known number of steps, on the view that it was begun on."""

    def __init__(self, view: ProgressView, bars: Progress, title: str, total: int, completed: int) -> None:
        self._view = view
        self._bars = bars
        self._bar: TaskID = bars.add_task(title, total=total, completed=completed)
        self._title = title
        self._total = total
        self._note = ""
        self._last_line = self._last_step = time.monotonic()
        self._is_over = False

    @property
    def note(self) -> str:
        """The latest word on what was reached."""
        return self._note

    def advance(self, steps: float = 1, note: str = "") -> None:
        """Count steps as done, with a word on what was reached; one that is over counts no more."""
        if self._is_over:
            return
        self._note = note or self._note
        self._last_step = time.monotonic()
        self._bars.update(self._bar, advance=steps)
        if time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._view.say(f"{self._title}: {self._counted()}  {self._view.reached(self)}")

    def extend(self, steps: int) -> None:
        """Add steps to what there is to do."""
        if not self._is_over:
            self._total += steps
            self._bars.update(self._bar, total=self._total)

    def linger(self) -> None:
        """Say that the work goes on, though there is nothing new to say of it."""
        waited = duration(time.monotonic() - self._last_step)
        self._last_line = time.monotonic()
        self._view.say(f"{self._title}: {self._counted()}  {waited} since the last step")

    def finish(self) -> None:
        """Say that the work is done."""
        self._is_over = True
        self._view.say(f"{self._title}: done  {self._view.reached(self)}")

    def remove(self) -> None:
        """Take the work off the view."""
        self._is_over = True
        self._bars.remove_task(self._bar)

    def _counted(self) -> str:
        task = next(task for task in self._bars.tasks if task.id == self._bar)
        left = "" if task.time_remaining is None else f", {duration(task.time_remaining)} left"
        return f"{task.completed:.0f}/{task.total:.0f}{left}"


class _TimeColumn(TimeRemainingColumn):
    """The time that is left, or as long as nobody knows it, the time that has passed: something always moves."""

    def render(self, task: Task) -> Text:
        """See `rich.progress.ProgressColumn`."""
        if task.time_remaining is None and not task.finished and task.elapsed is not None:
            return Text(f"+{duration(task.elapsed)}", style="progress.elapsed")
        return super().render(task)


class ProgressView:
    """Draws how a run goes: its stages, the work that is done now, and the figures that were found.

    It is a `RunObserver`; commands without a run use `stage` alone. On a terminal everything is in one view that
    refreshes itself, below what is printed on `console` meanwhile. Elsewhere there are lines: as work begins and ends,
    at most one each ten seconds in between, and at least one in twelve seconds while a run or work goes on.

    Args:
        console: Console to draw on: standard error, so that standard output stays clean for data.
        quiet: True to draw nothing.
        observers: Further observers. One that fails is reported on the console and dropped.
    """

    def __init__(self, console: Console, quiet: bool = False, observers: Sequence[RunObserver] = ()) -> None:
        self.console = console
        self._is_live = console.is_terminal and not console.is_dumb_terminal and not quiet
        self._says_lines = not self._is_live and not quiet
        self._observers = Observers(observers, self._say_given_up)
        self._live: Live | None = None
        self._bars = Progress(
            # Where it is narrow, titles wrap before counts are cut.
            TextColumn("{task.description}", markup=False, table_column=Column()),
            BarColumn(None, table_column=Column(ratio=1, min_width=4)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            _TimeColumn(compact=True, elapsed_when_finished=True, table_column=Column(no_wrap=True)),
            console=console,
            speed_estimate_period=_SPEED_OVER_SECONDS,
            auto_refresh=False,
            expand=True,
        )
        self._work: list[Stage] = []
        self._name = ""
        self._began_at = 0.0
        self._stages: StageList | None = None
        self._cost: str = DEFAULT_COST
        self._figures: dict[str, float] = {}
        self._heartbeat: Heartbeat | None = None
        self._said_at = time.monotonic()
        self._said_once: set[str] = set()
        self._stage = ""

    def began(self, name: str, config: RunConfig, stages: Sequence[str]) -> None:
        """Show a run with its stages from now on, until it has ended."""
        self._name, self._began_at = name, time.monotonic()
        self._stages, self._figures, self._stage = StageList(stages), {}, ""
        self._said_once.clear()
        self._cost = config.cost
        self._open()
        self._observers.began(name, config, stages)

    def stage_changed(self, stage: str, state: StudyState) -> None:
        """Show where a stage stands."""
        lasting = _OF_THE_FRONT if self._is_live else ()
        self._figures = {name: self._figures[name] for name in lasting if name in self._figures}
        if self._stages is not None:
            self._stages.change(stage, state)
            self._stage = stage if state is StudyState.RUNNING else ""
            if state is StudyState.RUNNING:
                self.say("Stage {} of {}: {}".format(*self._stages.place(stage), stage))
            else:
                seconds = self._stages.seconds(stage)
                self.say(f"Stage {stage}: {state}" + ("" if seconds is None else f" after {duration(seconds)}"))
        self.refresh()
        self._observers.stage_changed(stage, state)

    def figures(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """Show the latest figures of the stage that runs."""
        self._figures = {**self._figures, **figures}
        self._observers.figures(stage, step, figures)

    def measured(self, measurements: Sequence[Measurement]) -> None:
        """Hand the test measurements on; they are drawn by whoever shows results."""
        self._observers.measured(measurements)

    def ended(self, state: StudyState) -> None:
        """Leave the view as it is, and wait a while for observers that lag behind."""
        try:
            self._observers.ended(state)
        finally:
            self.close()

    def close(self) -> None:
        """Stop drawing: the view's last state stays, and the terminal goes on below it."""
        if self._live is not None:
            live, self._live = self._live, None
            atexit.unregister(self.close)
            live.stop()
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None
        self._stages = None

    def refresh(self) -> None:
        """Draw the live view as things stand now, and not a moment later by itself."""
        if self._live is not None:
            self._live.refresh()

    @contextmanager
    def stage(self, title: str, total: int, completed: int = 0, is_brief: bool = False) -> Iterator[Stage]:
        """Work of `total` steps, of which some may be done already; other work may be inside.

        Lines say of brief work only that it goes on, once it lasts.
        """
        is_alone = not self._work
        if is_brief:
            self._said_at = min(self._said_at, time.monotonic() - _SECONDS_OF_SILENCE + _SECONDS_BETWEEN_BEATS)
        else:
            self.say(f"{title} ...")
        stage = Stage(self, self._bars, title, total, completed)
        self._work = [*self._work, stage]
        try:
            self._open()
            yield stage
            if not is_brief:
                stage.finish()
        finally:
            if is_alone and self._stages is None:
                # Without a run to show, the work's last state is what stays.
                self.close()
            self._work = [other for other in self._work if other is not stage]
            stage.remove()

    def say(self, line: str) -> None:
        """Print a line about progress, where there is no live view."""
        if self._says_lines:
            self._said_at = time.monotonic()
            self.console.print(line.rstrip(), highlight=False, markup=False)

    def tell(self, lines: Sequence[str]) -> None:
        """Print lines that are worth reading before the work goes on, unless the view is quiet."""
        if self._is_live or self._says_lines:
            self._said_at = time.monotonic()
            for line in lines:
                self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def say_once(self, line: str) -> None:
        """Print a line that is worth knowing whatever is drawn, but not twice in a run."""
        if line not in self._said_once:
            self._said_once.add(line)
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def reached(self, stage: Stage) -> str:
        """Note of the work, and the figures that it does not contain."""
        pieces = [piece for piece in _pieces(self._figures, self._cost) if piece not in stage.note]
        return ", ".join([stage.note, *pieces] if stage.note else pieces)

    def _open(self) -> None:
        if self._is_live and self._live is None:
            self._live = Live(
                console=self.console,
                get_renderable=self._drawing,
                refresh_per_second=_REFRESHES_PER_SECOND,
                # What goes to a file or a pipe is data.
                redirect_stdout=sys.stdout.isatty(),
            )
            # Whatever ends the process, the terminal gets its cursor back.
            atexit.register(self.close)
            self._live.start(refresh=True)
        if self._says_lines and self._heartbeat is None:
            self._heartbeat = Heartbeat(self._linger, _SECONDS_BETWEEN_BEATS)

    def _linger(self) -> None:
        """Say where things stand, if nothing was said for a while."""
        if time.monotonic() - self._said_at < _SECONDS_OF_SILENCE:
            return
        # The thread that works may begin and end things meanwhile.
        work, stages, stage = self._work, self._stages, self._stage
        if work:
            work[-1].linger()
        elif stages is not None and stage:
            self.say(f"Stage {stage}: {duration(stages.seconds(stage) or 0.0)} so far")

    def _drawing(self) -> RenderableType:
        stages, work = self._stages, self._work
        parts: list[RenderableType] = []
        if stages is not None:
            title = Text.assemble((self._name, "bold"), f"  {duration(time.monotonic() - self._began_at)}")
            parts += [title, stages]
        if work:
            parts.append(self._bars)
        notes = [stage.note for stage in work if stage.note]
        parts += [Text(note, style="dim") for note in notes]
        said = " ".join(notes)
        pieces = [piece for piece in _pieces(self._figures, self._cost) if piece not in said]
        if stages is not None and pieces:
            parts.append(Text("  ".join(pieces)))
        return Group(*parts)

    def _say_given_up(self, reason: str) -> None:
        self.console.print(reason, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _pieces(figures: Mapping[str, float], cost: str) -> list[str]:
    """Figures in words, those that people look for first."""
    rest = dict(figures)
    rest.pop("trials", None)  # the bar counts them
    rest.pop("rows", None)  # how many there will be
    pieces = []
    if "trials_per_s" in rest:
        pieces.append(f"{rest.pop('trials_per_s'):.3g} trials/s")
    if "workers" in rest:
        n = rest.pop("workers")
        pieces.append(f"{n:.0f} worker" + ("" if n == 1 else "s"))
    if "front" in rest:
        pieces.append(f"front {rest.pop('front'):.0f}")
    if "hypervolume" in rest:
        objectives = (KL, cost)
        volume = f"hypervolume {shown_volume(rest.pop('hypervolume'), objectives):.4g}"
        reference = [rest.pop(name) for name in ("reference_kl", "reference_cost") if name in rest]
        pieces.append(volume + (f" up to {reference_text(reference, objectives)}" if len(reference) == 2 else ""))
    if "knee_kl" in rest:
        knee = f"knee: KL {rest.pop('knee_kl'):.3g}"
        pieces.append(knee + (f" at {objective(cost).text(rest.pop('knee_cost'))}" if "knee_cost" in rest else ""))
    if "held_out_kl" in rest:
        pieces.append(f"held-out KL {rest.pop('held_out_kl'):.3g}")
    return pieces + [f"{name.replace('_', ' ')} {value:.4g}" for name, value in rest.items()]
