"""Progress is one view on a terminal and plain lines elsewhere; who else is told of it cannot harm the run."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from search.config.run_config import RunConfig
from search.progress.heartbeat import Heartbeat
from search.progress.observer import Observers
from search.progress.progress_view import ProgressView
from search.progress.stage_list import StageList, duration
from studies import Measurement, StudyState

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = RunConfig(workers=1)
STAGES = (
    "search",
    "tune",
    "distill-1",
    "refine-1",
    "distill-2",
    "refine-2",
    "measure",
    "select",
    "test",
    "time",
    "report",
)
FIGURES = {
    "trials": 45.0,
    "trials_per_s": 24.12,
    "workers": 2.0,
    "front": 12.0,
    "hypervolume": 1.25,
    "knee_kl": 0.0212,
    "knee_cost": 12.34,
}
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class Terminal(io.StringIO):
    """What a terminal was sent."""

    def frame(self) -> str:
        """The view as it was drawn last."""
        last = re.split(r"(?:\r?\x1b\[(?:2K|1A))+", self.getvalue())[-1]
        return re.sub(r"\x1b\[[?\d;]*[A-Za-z]|\r", "", last)


class Recorder:
    """An observer that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def began(self, name: str, config: RunConfig, stages: Sequence[str]) -> None:
        self.told.append(("began", name, config, stages))

    def stage_changed(self, stage: str, state: StudyState) -> None:
        self.told.append(("stage_changed", stage, state))

    def figures(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        self.told.append(("figures", stage, step, figures))

    def measured(self, measurements: Sequence[Measurement]) -> None:
        self.told.append(("measured", measurements))

    def ended(self, state: StudyState) -> None:
        self.told.append(("ended", state))


class Faulty(Recorder):
    """An observer whose server is away."""

    def figures(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        raise ConnectionError(f"no answer\nsecond line of {stage}")


class Slow(Recorder):
    """An observer that waits for its server until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def began(self, name: str, config: RunConfig, stages: Sequence[str]) -> None:
        self.released.wait()
        super().began(name, config, stages)


def on_terminal(width: int = 80, height: int = 24, **options: Any) -> tuple[ProgressView, Terminal]:
    terminal = Terminal()
    console = Console(file=terminal, force_terminal=True, width=width, height=height, markup=False, **options)
    return ProgressView(console), terminal


def refining(view: ProgressView) -> None:
    """A run up to the middle of its first refinement."""
    view.began("mine", CONFIG, STAGES)
    for stage in ("search", "distill-1"):
        view.stage_changed(stage, StudyState.RUNNING)
        view.stage_changed(stage, StudyState.FINISHED)
    view.stage_changed("refine-1", StudyState.RUNNING)


@pytest.mark.parametrize("width", [80, 130])
def test_a_terminal_shows_stages_bars_and_figures_in_one_view(width: int) -> None:
    view, terminal = on_terminal(width)
    refining(view)
    with view.stage("Refining schedules, round 1", 150, 40) as stage:
        view.figures("refine-1", 45, FIGURES)
        stage.advance(5, "finishing what is in flight")
        view.refresh()
        view.console.print("printed meanwhile")
        frame = terminal.frame()
    view.ended(StudyState.STOPPED)
    for expected in (
        r"^printed meanwhile\nmine  0:0\d$",
        r"✓ search +0:0\d",
        r"– tune",
        r"▸ refine-1 +0:0\d",
        r"· distill-2  ",
        r"Refining schedules, round 1 .*45/150",
        r"^finishing what is in flight$",
        r"^24\.1 trials/s  2 workers  front 12  hypervolume 1\.25  knee: KL 0\.0212 at 12\.3 ms$",
    ):
        assert re.search(expected, frame, re.MULTILINE), (expected, frame)
    assert max(map(len, frame.split("\n"))) <= width


@pytest.mark.parametrize(("width", "height"), [(46, 24), (30, 10), (12, 6)])
def test_a_narrow_terminal_is_enough(width: int, height: int) -> None:
    view, terminal = on_terminal(width, height)
    refining(view)
    with view.stage("Refining", 150) as stage:
        stage.advance(45)
        view.refresh()
        frame = terminal.frame()
    view.ended(StudyState.FINISHED)
    assert "▸ refine-1" in frame
    assert max(map(len, frame.split("\n"))) <= width
    # What moved out of the window could not be drawn over.
    assert frame.count("\n") <= height


def test_many_stages_leave_room_for_the_bars() -> None:
    rounds = [f"{kind}-{n}" for n in range(1, 30) for kind in ("distill", "refine")]
    view, terminal = on_terminal(40, 16)
    view.began("mine", CONFIG, ["search", *rounds, "report"])
    view.stage_changed("refine-20", StudyState.RUNNING)
    with view.stage("Refining", 150):
        view.refresh()
        frame = terminal.frame()
    view.ended(StudyState.FINISHED)
    assert "▸ refine-20" in frame and "0/150" in frame and "search" not in frame


def test_work_inside_other_work_has_a_bar_while_it_lasts() -> None:
    view, terminal = on_terminal()
    refining(view)
    with view.stage("Refining", 150) as outer:
        with view.stage("Starting workers", 2) as inner:
            inner.advance()
            view.refresh()
            both = terminal.frame()
        outer.advance()
        view.refresh()
        one = terminal.frame()
    view.refresh()
    none = terminal.frame()
    view.ended(StudyState.FINISHED)
    assert "0/150" in both and "1/2" in both
    assert "1/150" in one and "Starting" not in one
    assert "Refining" not in none and "▸ refine-1" in none


def test_without_a_run_work_stays_on_the_terminal_when_it_is_done() -> None:
    view, terminal = on_terminal()
    with view.stage("Copying", 4, 1) as stage, view.stage("Reading", 1):
        stage.advance(3, "all of it")
    assert re.fullmatch(r"Copying ━+ 4/4 \d\d:\d\d\s+all of it\s+", terminal.frame())
    with view.stage("Again", 1):
        view.refresh()
    assert "Copying" not in terminal.frame()
    assert terminal.getvalue().count(HIDE_CURSOR) == terminal.getvalue().count(SHOW_CURSOR) == 2


def test_what_a_note_says_is_not_said_twice() -> None:
    view, terminal = on_terminal()
    refining(view)
    with view.stage("Refining", 150) as stage:
        view.figures("refine-1", 45, FIGURES)
        stage.advance(45, "front 12, knee: KL 0.0212 at 12.3 ms")
        view.refresh()
        frame = terminal.frame()
    view.ended(StudyState.FINISHED)
    assert frame.count("front 12") == frame.count("knee") == 1 and "2 workers  hypervolume" in frame


def test_figures_of_the_front_stay_while_later_stages_run() -> None:
    view, terminal = on_terminal()
    refining(view)
    view.figures("refine-1", 45, FIGURES)
    view.stage_changed("refine-1", StudyState.FINISHED)
    view.stage_changed("distill-2", StudyState.RUNNING)
    view.figures("distill-2", 8, {"held_out_kl": 0.5, "another_one": 1.0})
    view.refresh()
    frame = terminal.frame()
    view.ended(StudyState.FINISHED)
    assert "front 12  hypervolume 1.25" in frame and "trials/s" not in frame
    assert "held-out KL 0.5  another one 1" in frame.replace("\n", " ")


def test_a_terminal_of_few_letters_gets_few_letters() -> None:
    console = Console(file=io.TextIOWrapper(io.BytesIO(), "ascii"), force_terminal=True, width=80, legacy_windows=False)
    view = ProgressView(console)
    refining(view)
    view.stage_changed("refine-1", StudyState.FAILED)
    view.ended(StudyState.FAILED)
    console.file.flush()
    sent = console.file.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert "+ search" in sent and "x refine-1" in sent and "- tune" in sent


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_terminal_is_as_it_was_whatever_ends_the_work(error: type[BaseException]) -> None:
    view, terminal = on_terminal()
    with pytest.raises(error), view.stage("Copying", 4):
        raise error
    assert terminal.getvalue().rfind(SHOW_CURSOR) > terminal.getvalue().rfind(HIDE_CURSOR)
    refining(view)
    with pytest.raises(error), view.stage("Refining", 4):
        raise error
    view.ended(StudyState.STOPPED)
    assert terminal.getvalue().rfind(SHOW_CURSOR) > terminal.getvalue().rfind(HIDE_CURSOR)
    before = terminal.getvalue()
    view.console.print("after")
    assert terminal.getvalue() == before + "after\n"


@pytest.mark.parametrize("end", ["raise KeyboardInterrupt", "raise SystemExit(3)", "view.close()"])
def test_a_process_that_ends_without_saying_so_gives_the_cursor_back(end: str) -> None:
    script = f"""
from rich.console import Console
from search.config.run_config import RunConfig
from search.progress.progress_view import ProgressView
view = ProgressView(Console(stderr=True))
view.began("mine", RunConfig(), ["search"])
with view.stage("Searching", 3):
    print("data")
    {end}
"""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=theirs, env=environment, text=True
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:
        # So a terminal says that nobody writes to it any more.
        pass
    os.close(ours)
    assert process.stdout is not None
    assert process.stdout.read() == "data\n"
    process.stdout.close()
    process.wait()
    text = shown.decode()
    assert HIDE_CURSOR in text and text.rfind(SHOW_CURSOR) > text.rfind(HIDE_CURSOR)


def test_elsewhere_there_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    view = ProgressView(Console(file=shown, width=60))
    refining(view)
    with view.stage("Refining [schedules]", 150, 40) as stage:
        stage.advance(1)
        monkeypatch.setattr("search.progress.progress_view._SECONDS_BETWEEN_LINES", -1.0)
        view.figures("refine-1", 45, {"front": 12.0, "workers": 1.0})
        stage.advance(4, "a note")
    with pytest.raises(ValueError, match="broken"), view.stage("Breaking", 1):
        raise ValueError("broken")
    view.stage_changed("refine-1", StudyState.FAILED)
    view.ended(StudyState.FAILED)
    text = re.sub(r"\d+:\d\d", "TIME", shown.getvalue())
    assert text.splitlines() == [
        "Stage 1 of 11: search",
        "Stage search: finished after TIME",
        "Stage 3 of 11: distill-1",
        "Stage distill-1: finished after TIME",
        "Stage 4 of 11: refine-1",
        "Refining [schedules] ...",
        "Refining [schedules]: 45/150, TIME left  a note, 1 worker, ",
        "front 12",
        "Refining [schedules]: done  a note, 1 worker, front 12",
        "Breaking ...",
        "Stage refine-1: failed after TIME",
    ]


def beating(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What is called now and then while work goes on; a test calls it itself."""
    beats: list[Callable[[], None]] = []

    class ByHand:
        def __init__(self, beat: Callable[[], None], seconds: float) -> None:
            beats.append(beat)

        def stop(self) -> None:
            beats.clear()

    monkeypatch.setattr("search.progress.progress_view.Heartbeat", ByHand)
    return beats


def test_of_brief_work_it_is_said_only_that_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    beats, shown = beating(monkeypatch), io.StringIO()
    view = ProgressView(Console(file=shown, width=80))
    with view.stage("Loading", 1, is_brief=True):
        beats[0]()
        assert shown.getvalue() == ""
        view._said_at -= 2.0
        beats[0]()
    assert shown.getvalue() == "Loading: 0/1  0:00 since the last step\n"


def test_where_nothing_is_said_for_long_a_line_says_that_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    beats, shown = beating(monkeypatch), io.StringIO()
    view = ProgressView(Console(file=shown, width=80))

    def lines(silence: float = 11.0) -> list[str]:
        """What is said when nothing was for so long."""
        before = len(shown.getvalue())
        view._said_at -= silence
        beats[0]()
        return re.sub(r"\d+:\d\d", "TIME", shown.getvalue()[before:]).splitlines()

    view.began("mine", CONFIG, STAGES)
    view.stage_changed("measure", StudyState.RUNNING)
    assert lines(9.0) == []
    assert lines() == ["Stage measure: TIME so far"]
    with view.stage("Measuring quality", 8) as outer:
        outer.advance(3)
        with view.stage("Dense answers", 2):
            assert lines() == ["Dense answers: 0/2  TIME since the last step"]
        assert lines() == ["Measuring quality: 3/8  TIME since the last step"]
        assert lines(0.0) == []
    view.ended(StudyState.FINISHED)
    assert beats == []
    # Commands without a run have work, too, and work inside work.
    with view.stage("Copying", 4):
        with view.stage("Reading", 1):
            pass
        assert lines() == ["Copying: 0/4  TIME since the last step"]
    assert beats == []


@pytest.mark.parametrize("options", [{"quiet": True}, {"is_terminal": True}])
def test_a_line_that_work_goes_on_is_not_said_where_there_is_a_view_or_none(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, bool]
) -> None:
    beats = beating(monkeypatch)
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=options.get("is_terminal", False), width=80)
    view = ProgressView(console, quiet=options.get("quiet", False))
    with view.stage("Copying", 4):
        assert beats == []


def test_a_heart_beats_until_it_is_stopped() -> None:
    beaten = threading.Semaphore(0)
    heart = Heartbeat(lambda: beaten.release(), 0.001)
    assert all(beaten.acquire(timeout=60.0) for _ in range(3))
    heart.stop()
    heart._thread.join(60.0)
    assert not heart._thread.is_alive()


def test_on_a_terminal_time_passes_where_nobody_knows_how_much_is_left() -> None:
    view, terminal = on_terminal()
    with view.stage("Loading", 1):
        view.refresh()
        frame = terminal.frame()
    assert re.search(r"Loading .* 0/1 \+0:00", frame)


def test_a_line_that_is_worth_knowing_is_said_once_in_a_run() -> None:
    shown = io.StringIO()
    view = ProgressView(Console(file=shown, width=20), quiet=True)
    for _ in range(2):
        view.began("mine", CONFIG, STAGES)
        for _ in range(3):
            view.say_once("It is [busy], and has been for a while.")
        view.ended(StudyState.FINISHED)
    assert shown.getvalue() == "It is [busy], and has been for a while.\n" * 2


@pytest.mark.parametrize("is_terminal", [True, False])
def test_quiet_draws_nothing_and_still_lets_warnings_through(is_terminal: bool) -> None:
    shown, recorder = io.StringIO(), Recorder()
    console = Console(file=shown, width=80, force_terminal=is_terminal, color_system=None)
    view = ProgressView(console, quiet=True, observers=[recorder])
    refining(view)
    with view.stage("Refining", 150) as stage:
        stage.advance()
        view.console.print("a warning")
    view.ended(StudyState.FINISHED)
    assert shown.getvalue() == "a warning\n"
    assert recorder.told[0][0] == "began" and recorder.told[-1] == ("ended", StudyState.FINISHED)


def test_data_on_standard_output_stays_there(capsys: pytest.CaptureFixture[str]) -> None:
    view, terminal = on_terminal()
    refining(view)
    with view.stage("Refining", 150):
        print("data")
    view.ended(StudyState.FINISHED)
    assert capsys.readouterr() == ("data\n", "")
    assert "data" not in terminal.getvalue()


def test_observers_hear_everything_in_order() -> None:
    recorders = [Recorder(), Recorder()]
    view = ProgressView(Console(quiet=True), observers=recorders)
    figures = {"front": 1.0}
    for _ in range(2):
        view.began("mine", CONFIG, STAGES)
        view.stage_changed("search", StudyState.RUNNING)
        view.figures("search", 7, figures)
        figures["front"] += 1
        view.measured([])
        view.ended(StudyState.FINISHED)
    for recorder in recorders:
        assert recorder.told == [
            event
            for front in (1.0, 2.0)
            for event in (
                ("began", "mine", CONFIG, list(STAGES)),
                ("stage_changed", "search", StudyState.RUNNING),
                ("figures", "search", 7, {"front": front}),
                ("measured", []),
                ("ended", StudyState.FINISHED),
            )
        ]


def test_an_observer_that_fails_is_reported_once_and_told_nothing_more() -> None:
    shown, faulty, recorder = io.StringIO(), Faulty(), Recorder()
    view = ProgressView(Console(file=shown, width=40), quiet=True, observers=[faulty, recorder])
    for _ in range(2):
        view.began("mine", CONFIG, STAGES)
        for step in range(3):
            view.figures("search", step, {"front": 1.0})
        view.ended(StudyState.FINISHED)
    assert shown.getvalue() == "Faulty is told nothing more: ConnectionError: no answer\n"
    assert [event[0] for event in faulty.told] == ["began"]
    assert [event[0] for event in recorder.told] == ["began", "figures", "figures", "figures", "ended"] * 2


def test_an_observer_that_is_slow_holds_nobody_up() -> None:
    slow, recorder, reports = Slow(), Recorder(), list[str]()
    observers = Observers([slow, recorder], reports.append)
    observers.began("mine", CONFIG, STAGES)
    observers.figures("search", 1, {"front": 1.0})
    assert slow.told == []
    slow.released.set()
    observers.ended(StudyState.FINISHED)
    assert slow.told == recorder.told and len(slow.told) == 3 and reports == []


@pytest.mark.parametrize("state", [StudyState.FINISHED, StudyState.STOPPED])
def test_an_observer_that_never_answers_is_left_behind(state: StudyState) -> None:
    slow, reports = Slow(), list[str]()
    observers = Observers([slow], reports.append, patience_s=0.01)
    observers.began("mine", CONFIG, STAGES)
    observers.ended(state)
    assert reports == ["Slow is told nothing more: it has not taken everything that it was told in time"]
    slow.released.set()


def test_stages_that_were_not_foreseen_join_where_they_begin() -> None:
    now = [0.0]
    stages = StageList(["search", "report"], lambda: now[0])
    stages.change("search", StudyState.RUNNING)
    now[0] = 75.0
    assert stages.seconds("search") == 75.0
    stages.change("search", StudyState.FINISHED)
    stages.change("distill", StudyState.RUNNING)
    now[0] = 100.0
    assert stages.place("distill") == (2, 3) and stages.place("report") == (3, 3)
    assert stages.seconds("search") == 75.0 and stages.seconds("report") is None


def test_durations_are_short() -> None:
    assert [duration(s) for s in (0.4, 59.9, 60, 754, 3754)] == ["0:00", "0:59", "1:00", "12:34", "1:02:34"]


def test_work_that_turns_out_to_be_more_is_counted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    beating(monkeypatch)
    shown = io.StringIO()
    view = ProgressView(Console(file=shown, width=80))
    with view.stage("Measuring latency", 4) as stage:
        stage.advance(4)
        stage.extend(6)
        stage.advance(1)
        stage.linger()
    # Nothing is said of work that is over.
    stage.extend(5)
    assert "Measuring latency: 5/10" in shown.getvalue()
