"""Begins studies: everything that can be wrong with what is asked for is found out before there is one."""

from __future__ import annotations

from collections.abc import Collection

from ftp_core.model_source import DEMO
from ftp_core.models import resolve
from ftp_core.saving import check_directory
from search.callbacks import forget_runs
from search.config import RunConfig
from search.errors import ConfigError
from search.feasibility import check_search
from search.objectives import objective_names
from search.pipeline import load_with_progress
from search.progress import ProgressView
from search.rounds import rounds_of
from search.workload import Workload, read_examples
from studies import StudyStore

# Settings that say how long the first search goes on.
_LENGTH_OF_SEARCH = {"trials", "seconds", "plateau"}


def usable(config: RunConfig) -> RunConfig:
    """A configuration whose model and data are known to exist, with the place of the model; no weights are read.

    Raises:
        CoreError: There is no such model, or the data cannot be read.
    """
    source = resolve(config.model)
    read_examples(config.data, config.seed, config.sizes)
    return config if config.model == DEMO else config.model_copy(update={"model": source})


def begin_study(
    store: StudyStore, name: str, config: RunConfig, view: ProgressView, overwrite: bool = False
) -> Workload:
    """Create a study, once its model and data are loaded and a search can be made as it is asked for.

    Args:
        store: Where it shall live.
        name: Its name.
        config: How it is configured, as `usable` returns it.
        view: Where progress is drawn.
        overwrite: Whether a study of this name is deleted first.

    Returns:
        Its model and data.

    Raises:
        StudyExistsError: There is a study of this name.
        ConfigError: No search can be made as it is asked for.
        CoreError: Model or data cannot be used, or another model lies where the pruned one would be written.
    """
    _check_export(config, name)
    # Whoever resumes it may be elsewhere.
    config = config.model_copy(update={"out": str(config.folder(name).absolute())})
    if config.warm_start is not None:
        if config.warm_start == name:
            raise ConfigError(f"--warm-start is {name!r}, which is the new study itself: name another one.")
        store.study(config.warm_start)
    taken = any(summary.name == name for summary in store.summaries())
    if taken and not overwrite:
        # Refused at once, and not after minutes of loading.
        store.create_study(name, config.model_dump(), objective_names(config.cost))
    for line in config.without_effect:
        view.console.print(line, highlight=False)
    workload = load_with_progress(config, view)
    check_search(config, workload, store)
    if taken:
        store.delete_study(name)
    store.create_study(name, config.model_dump(), objective_names(config.cost))
    forget_runs(config.folder(name))
    return workload


def _check_export(config: RunConfig, name: str) -> None:
    """Raise `ModelError` if the pruned model would be written over another one, hours before it would be."""
    if config.export != "none":
        check_directory(config.folder(name) / "model")


def reconfigure(store: StudyStore, name: str, config: RunConfig, asked: Collection[str] = ()) -> None:
    """Give a study another configuration, with which it goes on; in another folder its model is written again.

    Args:
        store: Where it lives.
        name: Its name.
        config: The new configuration; without a folder, that of before stays.
        asked: Which settings were asked for. If one of them says how long to search, a first search that ended before
            it had all its trials goes on, and what rests on it is done anew; likewise the last refinement, if its
            trials were asked for.

    Raises:
        ModelError: Another model lies where the pruned one would be written.
    """
    before = RunConfig.stored(store.study(name).config)
    if config.out is None:
        config = config.model_copy(update={"out": before.out})
    _check_export(config, name)
    if (before.folder(name), before.export) != (config.folder(name), config.export):
        store.forget_stages(name, ["export"])
    if (before.latency_length, before.new_tokens) != (config.latency_length, config.new_tokens):
        store.forget_stages(name, ["time"])
    if _LENGTH_OF_SEARCH & set(asked) and sum(trial.round == 0 for trial in store.each_trial(name)) < config.trials:
        store.forget_stages(name, ["search"])
    last = max(
        (one.round for one in rounds_of(store.study(name).facts).values() if one.first_trial is not None), default=None
    )
    if "refine_trials" in asked and sum(t.round == last for t in store.each_trial(name)) < config.refine_trials:
        store.forget_stages(name, [f"refine-{last}"])
    store.set_config(name, config.model_dump())
