"""Creates and reopens studies; whatever can be wrong with a configuration is found out before a study exists."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from ftp_core.loading.model_source import NAMED, locate
from ftp_core.loading.models import published_dtype, resolve
from ftp_core.loading.placement import device_of, dtype_of, name_of
from ftp_core.sources.source import parse_sources
from search.config.run_config import RunConfig
from search.errors import ConfigError
from search.inputs.data import Workload
from search.inputs.examples import read_examples
from search.inputs.same_inputs import located
from search.pipeline.pipeline import Pipeline
from search.pipeline.preflight import check_search
from search.pipeline.workload import load_with_progress
from search.problem.objectives import objective_names
from search.progress.progress_view import ProgressView
from search.progress.trackers.run_ids import forget_runs, restore_runs
from search.proposers.catalogue import check_samplers
from search.stages.export import check_export
from studies import StudyRecord, StudyStore
from studies.records.labels import NO_LABELS, Labels
from studies.records.study_facts import Origin
from studies.store.lease import Lease
from studies.store.results_folder import check_results, exported_in, own_origins, results_in

# Settings that say how long the first search goes on.
_LENGTH_OF_SEARCH = {"trials", "seconds", "plateau"}


def usable(config: RunConfig) -> RunConfig:
    """The configuration with the place and precision of its model; what it names exists, and no weights are read."""
    resolve(config.reference)
    check_samplers(config.sampler)
    if all(source.is_path for source in parse_sources(config.data)):
        # Others take minutes, and are read with the model before a study exists.
        read_examples(config.data, config.seed, config.sizes, config.form)
    is_named = config.model in NAMED
    return _in_its_precision(config if is_named else config.model_copy(update={"model": locate(config.reference)}))


def _in_its_precision(config: RunConfig) -> RunConfig:
    """A configuration with the precision that its study keeps, wherever it goes on."""
    dtype = dtype_of(config.dtype, device_of(config.device), published_dtype(resolve(config.reference)))
    return config.model_copy(update={"dtype": name_of(dtype)})


def foreseeable(config: RunConfig, store: StudyStore, view: ProgressView) -> Workload:
    """Model and data of a study that could be created by a configuration of `usable`, and is not."""
    workload = load_with_progress(config, view)
    check_search(config, workload, store)
    return workload


@contextmanager
def beginning(
    store: StudyStore,
    name: str,
    config: RunConfig,
    view: ProgressView,
    overwrite: bool = False,
    labels: Labels = NO_LABELS,
) -> Iterator[tuple[RunConfig, Workload]]:
    """Context of a new study, which is created once its model and data are loaded and its search can be made.

    Gives the configuration that it keeps, and its model and data. A study that it replaces, with its results, stays
    until the new one evaluates its first schedule; if the context ends before that, it stays for good, and nothing is
    left of the new one.

    Raises:
        StudiesError: The name is taken, the study to replace is busy, or the folder holds the results of another one.
        ConfigError: The configuration allows no search.
        CoreError: Model or data cannot be used, or another model lies where the pruned one would be written.
    """
    if config.warm_start is not None:
        if config.warm_start == name:
            raise ConfigError(f"--warm-start is {name!r}, which is the new study itself: name another one.")
        store.studies.get(config.warm_start)
    taken = store.studies.is_taken(name)
    if taken and not overwrite:
        # Refused at once, and not after minutes of loading.
        store.studies.create(name, config.model_dump(), objective_names(config.cost))
    for line in config.without_effect:
        view.say_once(line)
    replaces = _replaceable(config, name, overwrite)
    # Whoever resumes it may be elsewhere.
    config = config.model_copy(update={"out": str(config.folder(name).absolute())})
    workload = foreseeable(config, store, view)
    begin = store.studies.begin_replacement if taken else store.studies.create
    begin(name, config.model_dump(), objective_names(config.cost), replaces, labels)
    runs = forget_runs(config.folder(name))
    try:
        yield config, workload
    except BaseException:
        if store.studies.is_aside(name):
            store.studies.abandon_replacement(name)
            restore_runs(config.folder(name), runs)
        raise


def _replaceable(config: RunConfig, name: str, overwrite: bool) -> set[Origin]:
    """The studies whose results a new one finds in its folder and may replace; refuses those that it may not."""
    folder = config.folder(name)
    found = {one for one in (results_in(folder), exported_in(folder / "model")) if one is not None}
    # A name that is used again is what overwriting is for; of other studies nothing is replaced.
    replaces = {one for one in found if one.name == name}
    allowed = replaces if overwrite else set()
    advice = "choose another folder with --out"
    if replaces and not overwrite:
        advice += ", or replace them with --overwrite"
    check_results(folder, allowed, advice)
    if config.export != "none":
        check_export(folder / "model", allowed, advice)
    return allowed


def reopened(
    store: StudyStore,
    study: StudyRecord,
    config: RunConfig,
    lease: Lease,
    view: ProgressView,
    asked: Collection[str] = (),
    workload: Workload | None = None,
) -> Pipeline:
    """The pipeline of a study that goes on with another configuration, which it keeps if model and data are its own.

    Without a folder in the new configuration, that of before stays. If one of the settings that were asked for says how
    long to search, a first search that ended before it had all its trials goes on, and what rests on it is done anew;
    likewise the last refinement, if its trials were asked for.

    Raises:
        SearchError: Model or data are not those that the study began with, or not where it has them.
        ForeignResultsError: The folder holds the results of another study.
        CoreError: One of them cannot be used, or another model lies where the pruned one would be written.
    """
    before = RunConfig.stored(study.config)
    if config.out is None:
        config = config.model_copy(update={"out": before.out})
    folder, own, advice = config.folder(study.name), own_origins(study), "choose another folder with --out"
    check_results(folder, own, advice)
    if config.export != "none":
        check_export(folder / "model", own, advice)
    config = _in_its_precision(located(study.name, before, config))
    pipeline = Pipeline(store, study.name, lease, view, config, workload)
    reconfigure(store, study.name, before, config, asked)
    return pipeline


def reconfigure(
    store: StudyStore, name: str, before: RunConfig, config: RunConfig, asked: Collection[str] = ()
) -> None:
    """Gives a study another configuration, and forgets the stages that are due again by it; see `reopened`."""
    if (before.folder(name), before.export) != (config.folder(name), config.export):
        store.runs.forget_stages(name, ["export"])
    if before.test_data != config.test_data:
        store.runs.forget_stages(name, ["test"])
    if config.asked_trials - before.asked_trials:
        store.runs.forget_stages(name, ["measure"])
    if before.select_trial != config.select_trial:
        store.runs.forget_stages(name, ["select"])
    if (before.latency_length, before.new_tokens) != (config.latency_length, config.new_tokens):
        store.runs.forget_stages(name, ["time"])
    if _LENGTH_OF_SEARCH & set(asked) and store.trials.spent(name, 0) < config.trials:
        store.runs.forget_stages(name, ["search"])
    rounds = store.studies.get(name).facts.rounds
    last = max((one.round for one in rounds if one.first_trial is not None), default=None)
    if "refine_trials" in asked and sum(t.round == last for t in store.trials.each(name)) < config.refine_trials:
        store.runs.forget_stages(name, [f"refine-{last}"])
    store.studies.set_config(name, config.model_dump())
