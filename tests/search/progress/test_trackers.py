"""Trackers are told how a run goes: each is tried with its real library, in a mode that needs no server."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ftp_core.extras import install_extra
from search.config.run_config import RunConfig
from search.errors import ConfigError
from search.progress.observer import RunObserver
from search.progress.progress_view import ProgressView
from search.progress.trackers import TRACKERS, make_observers
from search.progress.trackers.entries import measured_figures, parameters
from search.progress.trackers.run_ids import forget_runs
from studies import Measurement, StudyState

STAGES = ["search", "distill-1", "refine-1", "report"]
TEST = Measurement(
    variant="refined",
    trial=7,
    schedule=(0.0, 0.5),
    kl=0.125,
    perplexity=1.5,
    accuracy=0.75,
    accuracy_low=None,
    accuracy_high=None,
    n_items=20,
    latency_ms=12.5,
    latency_low_ms=12.0,
    latency_high_ms=13.0,
    repeats=5,
    batch=8,
    length=64,
    flops=1e9,
)


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trackers write to the test's folder, and call nobody."""
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name.startswith(("MLFLOW_", "WANDB_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    wandb = sys.modules.get("wandb")
    if wandb is not None:
        # It reads the environment once.
        wandb.teardown()


@pytest.fixture(scope="module")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store for all tests: a new one takes seconds."""
    pytest.importorskip("mlflow")
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def config(**changes: Any) -> RunConfig:
    return RunConfig(workers=1, **{"out": "out", "dense_blocks": (0, -1), **changes})


def begin(observer: RunObserver, **changes: Any) -> None:
    observer.began("mine", config(**changes), STAGES)


def tell(observer: RunObserver, state: StudyState, first: int = 0, **changes: Any) -> None:
    """What an observer is told of a search that ends after two more trials."""
    begin(observer, **changes)
    observer.stage_changed("search", StudyState.RUNNING)
    for step in (first + 1, first + 2):
        observer.figures("search", step, {"front": 1.0, "knee_kl": 1 / step})
    observer.figures("refine-1", 1, {"front": 9.0})
    observer.stage_changed("search", state)
    if state is StudyState.FINISHED:
        observer.measured([replace(TEST, variant="dense", trial=None, accuracy=1.0), TEST])
    observer.ended(state)


def made(name: str) -> RunObserver:
    pytest.importorskip(name)
    (observer,) = make_observers(name)
    return observer


# MLflow


def runs_of(store: str) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(os.environ.get("MLFLOW_EXPERIMENT_NAME", "ftp-search"))
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id], order_by=["created"]))


def test_mlflow_has_one_run_for_a_study_that_was_resumed(mlflow_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
    tell(made("mlflow"), StudyState.STOPPED, trials=2)
    (run,) = runs_of(mlflow_store)
    assert run.info.run_name == "mine" and run.info.status == "KILLED"
    assert run.data.params.items() >= {"study": "mine", "trials": "2", "dense_blocks": "0,-1"}.items()
    assert run.data.tags["stage.search"] == "stopped"

    resumed = made("mlflow")
    begin(resumed, trials=4)
    (run,) = runs_of(mlflow_store)
    assert run.info.status == "RUNNING" and run.data.params["trials"] == "2"
    assert run.data.tags["resumed.trials"] == "4" and "resumed.seed" not in run.data.tags

    tell(resumed, StudyState.FINISHED, first=2, trials=4)
    (run,) = runs_of(mlflow_store)
    assert run.info.status == "FINISHED" and run.data.tags["stage.search"] == "finished"
    history = MlflowClient(mlflow_store).get_metric_history(run.info.run_id, "search/knee_kl")
    assert [(one.step, one.value) for one in history] == [(step, 1 / step) for step in (1, 2, 3, 4)]
    metrics = run.data.metrics
    assert metrics["refine-1/front"] == 9.0
    assert metrics["test/refined/accuracy"] == 0.75 and metrics["test/dense/accuracy"] == 1.0
    assert "test/refined/accuracy_low" not in metrics


def test_mlflow_begins_another_run_where_there_is_none_to_go_on_with(
    mlflow_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    tell(made("mlflow"), StudyState.FAILED)
    (first,) = runs_of(mlflow_store)
    assert first.info.status == "FAILED"
    MlflowClient(mlflow_store).delete_run(first.info.run_id)
    begin(made("mlflow"))
    assert len(runs_of(mlflow_store)) == 1
    Path("out/tracking/mlflow").write_text("0123456789abcdef0123456789abcdef\n")
    begin(made("mlflow"))
    assert len(runs_of(mlflow_store)) == 2
    # A study that was overwritten is another one.
    forget_runs(Path("out"))
    begin(made("mlflow"))
    assert len(runs_of(mlflow_store)) == 3


# Weights & Biases


def wandb_records(folder: Path) -> Iterator[Any]:
    """What an offline run wrote: records in the format of LevelDB's log, after a header of seven bytes."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    # Its process writes until it ends.
    wandb.teardown()
    (file,) = folder.glob("run-*.wandb")
    data, position, whole = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def key_of(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def wandb_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any], int]:
    """The last configuration, the history, the summary and the exit code of an offline run."""
    settings: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    code = -1
    for record in wandb_records(folder):
        kind = record.WhichOneof("record_type")
        if kind in ("run", "config"):
            update = (record.run.config if kind == "run" else record.config).update
            settings |= {key_of(item): json.loads(item.value_json) for item in update}
        elif kind == "history":
            history.append({key_of(item): json.loads(item.value_json) for item in record.history.item})
        elif kind == "summary":
            summary |= {key_of(item): json.loads(item.value_json) for item in record.summary.update}
        elif kind == "exit":
            code = record.exit.exit_code
    return settings, history, summary, code


def test_wandb_goes_on_with_the_run_of_a_resumed_study() -> None:
    tell(made("wandb"), StudyState.STOPPED, trials=2)
    tell(made("wandb"), StudyState.FINISHED, first=2, trials=4)
    identifier = Path("out/tracking/wandb").read_text().strip()
    stopped, finished = sorted(
        Path("out/wandb").glob(f"offline-run-*-{identifier}"), key=lambda run: run.stat().st_ctime
    )
    settings, history, summary, code = wandb_run(stopped)
    assert settings.items() >= {"study": "mine", "trials": 2, "dense_blocks": "0,-1", "target_sparsity": None}.items()
    figures = [one for one in history if "search/knee_kl" in one]
    assert [(one["search/step"], one["search/knee_kl"]) for one in figures] == [(1, 1.0), (2, 0.5)]
    assert summary["state"] == summary["stage/search"] == "stopped" and code == 255
    settings, history, summary, code = wandb_run(finished)
    assert settings["trials"] == 4
    assert [one["search/step"] for one in history if "search/step" in one] == [3, 4]
    assert [one["refine-1/front"] for one in history if "refine-1/step" in one] == [9.0]
    assert summary["test/refined/accuracy"] == 0.75 and summary["state"] == "finished" and code == 0


def test_wandb_draws_figures_against_the_steps_of_their_stage() -> None:
    tell(made("wandb"), StudyState.FAILED)
    (run,) = Path("out/wandb").glob("offline-run-*")
    metrics = [one.metric for one in wandb_records(run) if one.WhichOneof("record_type") == "metric"]
    steps = {metric.glob_name: metric.step_metric for metric in metrics if metric.glob_name}
    assert steps == {"search/*": "search/step", "refine-1/*": "refine-1/step"}
    assert wandb_run(run)[3] == 1


def test_wandb_without_a_login_is_refused_and_does_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb").teardown()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ConfigError, match=r"--track wandb needs a login: run `wandb login`, or set WANDB_MODE=offline"):
        make_observers("wandb")


# TensorBoard


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = folder.iterdir()
    found = EventAccumulator(str(run))
    found.Reload()
    return found


def text(found: Any, tag: str) -> list[str]:
    return [one.tensor_proto.string_val[0].decode() for one in found.Tensors(f"{tag}/text_summary")]


def test_tensorboard_reads_the_steps_of_a_study_that_was_resumed() -> None:
    tell(made("tensorboard"), StudyState.STOPPED, trials=2)
    tell(made("tensorboard"), StudyState.FINISHED, first=2, trials=4)
    found = events(Path("out/tensorboard"))
    knees = [(one.step, one.value) for one in found.Scalars("search/knee_kl")]
    assert knees == [(step, pytest.approx(1 / step)) for step in (1, 2, 3, 4)]
    assert [one.value for one in found.Scalars("test/refined/accuracy")] == [0.75]
    assert text(found, "stage/search") == ["running", "stopped", "running", "finished"]
    assert text(found, "state") == ["stopped", "finished"]
    first, second = text(found, "config")
    assert "| trials | 2 |" in first and "| trials | 4 |" in second and "| study | mine |" in first


def test_tensorboard_shows_a_study_that_was_overwritten_as_another_run() -> None:
    tell(made("tensorboard"), StudyState.FINISHED)
    forget_runs(Path("out"))
    tell(made("tensorboard"), StudyState.FINISHED)
    assert len([*Path("out/tensorboard").iterdir()]) == 2


# All of them


def test_all_trackers_at_once_are_told_by_the_view(mlflow_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TRACKERS:
        pytest.importorskip(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "all")
    shown = io.StringIO()
    view = ProgressView(Console(file=shown), quiet=True, observers=make_observers("mlflow, wandb,tensorboard,mlflow"))
    tell(view, StudyState.FINISHED)
    assert shown.getvalue() == ""
    (run,) = runs_of(mlflow_store)
    assert run.info.status == "FINISHED"
    (offline,) = Path("out/wandb").glob("offline-run-*")
    assert wandb_run(offline)[3] == 0
    assert len(events(Path("out/tensorboard")).Scalars("search/front")) == 2


def test_a_tracker_that_cannot_write_does_not_end_the_run() -> None:
    pytest.importorskip("tensorboard")
    Path("out").mkdir()
    Path("out/tensorboard").write_text("no folder")
    shown = io.StringIO()
    view = ProgressView(Console(file=shown, width=60), quiet=True, observers=[made("tensorboard")])
    tell(view, StudyState.FINISHED)
    assert shown.getvalue().startswith("TensorboardObserver is told nothing more: ")
    assert shown.getvalue().count("\n") == 1


@pytest.mark.parametrize("names", ["", " , "])
def test_no_names_make_no_observers(names: str) -> None:
    assert make_observers(names) == []


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(ConfigError, match="--track is 'neptune': expected mlflow, wandb, tensorboard, or several with"):
        make_observers("tensorboard,neptune")


@pytest.mark.parametrize(
    ("name", "title"), [("mlflow", "MLflow"), ("wandb", "Weights & Biases"), ("tensorboard", "TensorBoard")]
)
def test_a_missing_library_is_named_with_its_extra(name: str, title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, name, name)
    with pytest.raises(ConfigError) as caught:
        make_observers(name)
    assert str(caught.value) == f"--track {name} needs {title}: {install_extra(name)}"


def test_a_broken_library_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "tensorboard", "torch.utils.tensorboard")
    with pytest.raises(ConfigError, match="cannot import TensorBoard, which is installed: .*pip install"):
        make_observers("tensorboard")


def hide(monkeypatch: pytest.MonkeyPatch, tracker: str, library: str) -> None:
    """Let a library be absent, and its observer's module not be imported yet."""
    import search.progress.trackers

    hidden = (f"search.progress.trackers.{tracker}", "torch.utils.tensorboard", library)
    for loaded in [*sys.modules]:
        if any(loaded == one or loaded.startswith(f"{one}.") for one in hidden):
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.delattr(search.progress.trackers, tracker, raising=False)
    monkeypatch.setitem(sys.modules, library, None)


def test_parameters_are_plain_and_short() -> None:
    given = config(fidelities=(0.25, 1.0), dense_blocks=(), deterministic=True, out="x" * 300)
    flat = parameters("mine", given)
    assert list(flat) == ["study", *RunConfig.model_fields] and flat["study"] == "mine"
    assert (flat["fidelities"], flat["dense_blocks"], flat["latency_batch"]) == ("0.25,1.0", "", 8)
    assert (flat["deterministic"], flat["plateau"], flat["out"]) == (True, None, "x" * 249 + "…")


def test_measurements_of_one_variant_are_told_apart_by_their_trials() -> None:
    figures = measured_figures([replace(TEST, variant="candidate", trial=n, kl=float(n)) for n in (3, 5)])
    assert figures["test/candidate-3/kl"] == 3.0 and figures["test/candidate-5/kl"] == 5.0
    assert figures["test/candidate-3/overall_sparsity"] == 0.25
