"""Opens studies to run them, as commands and Python do: checked before torch, transformers and Ray are loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.config.run_config import RunConfig
from search.errors import ConfigError
from search.pipeline.early_checks import check_inputs, check_where, check_writable
from search.pipeline.resume_settings import check_changes
from studies import StudyRecord, StudyStore
from studies.records.labels import NO_LABELS, Labels
from studies.sql.location import database_file
from studies.store.lease import Lease

if TYPE_CHECKING:
    from search.pipeline.pipeline import Pipeline
    from search.progress.progress_view import ProgressView

# Makes the pipeline of a study for the process that may work on it.
Opening = Callable[[Lease], "Pipeline"]
# Context in which libraries are imported.
Loading = Callable[[], AbstractContextManager[None]]


@contextmanager
def opened(storage: str) -> Iterator[StudyStore]:
    """The studies of a database; if one is made for them and none comes to be, it is removed again."""
    database = database_file(storage)
    fresh = database is not None and not database.exists()
    store = StudyStore(storage)
    try:
        yield store
    finally:
        # Another process may have begun a study in it meanwhile.
        unused = fresh and not store.studies.summaries()
        store.close()
        if unused and database is not None:
            for path in (database, Path(f"{database}-wal"), Path(f"{database}-shm")):
                path.unlink(missing_ok=True)


@contextmanager
def begun(
    name: str,
    config: RunConfig,
    storage: str,
    view: ProgressView,
    overwrite: bool,
    loading: Loading = nullcontext,
    labels: Labels = NO_LABELS,
) -> Iterator[tuple[StudyStore, Opening]]:
    """Context of a new study: its database, and the opening of its pipeline; see `search.pipeline.create.beginning`."""
    check_inputs(config)
    with view.stage("Loading libraries", 2, is_brief=True) as stage:
        with loading():
            from search.pipeline.create import beginning, usable
            from search.pipeline.pipeline import Pipeline
        stage.advance()
        config = usable(config)
        stage.advance()
    with opened(storage) as store, beginning(store, name, config, view, overwrite, labels) as (config, workload):
        yield store, lambda lease: Pipeline(store, name, lease, view, config, workload)


def resumed(
    store: StudyStore, name: str, settings: Mapping[str, Any], remeasure: bool
) -> tuple[StudyRecord, RunConfig]:
    """A study that is to go on with other settings, and its configuration with these, which may be refused."""
    study = store.studies.get(name)
    config = RunConfig.stored(study.config, **settings)
    check_changes(study, store.trials.of(name), config, settings)
    if remeasure and not config.predicts_latency:
        raise ConfigError(
            f"--remeasure measures latency, but study {name!r} predicts none: it trades KL against {config.cost}, "
            "without --max-latency-ms. Leave the option out."
        )
    return study, config


def continued(
    store: StudyStore,
    study: StudyRecord,
    config: RunConfig,
    view: ProgressView,
    asked: Collection[str] = (),
    loading: Loading = nullcontext,
) -> Opening:
    """The opening of a study's pipeline with another configuration; see `search.pipeline.create.reopened`."""
    store.check_writable()
    check_writable(config.folder(study.name))
    check_where(config)
    with view.stage("Loading libraries", 1, is_brief=True) as stage, loading():
        from search.pipeline.create import reopened

        stage.advance()
    return lambda lease: reopened(store, study, config, lease, view, asked)
