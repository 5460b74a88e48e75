"""The commands that begin a study: `run` and `search`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from search.cli.arguments import block_list, check_name, data_path, output_folder, share_list
from search.cli.options import (
    AsJson,
    Cost,
    Data,
    Debug,
    DenseBlocks,
    Deterministic,
    Fidelities,
    GpuShare,
    GpuWorkers,
    MaxLatency,
    MinAccuracy,
    Model,
    Name,
    Out,
    Overwrite,
    Plateau,
    PrefixMb,
    Pruner,
    RayAddress,
    RouterSteps,
    Sampler,
    Seconds,
    Seed,
    Storage,
    Target,
    TestItems,
    Trials,
    TrialTimeout,
    WarmStart,
    Workers,
)
from search.cli.stages import Stage, continue_study
from search.config import (
    DEFAULT_ROUTER_STEPS,
    DEFAULT_STORAGE,
    DEFAULT_TEST_ITEMS,
    DEFAULT_TRIALS,
    RunConfig,
)
from search.errors import ConfigError
from search.objectives import objective_names
from studies import StudyStore, database_file
from studies.objectives import DEFAULT_COST


def new_study_command(stage: Stage) -> Callable[..., None]:
    """`run` and `search` take the same options and differ in the stages that they go through."""

    def command(
        name: Name = "study",
        model: Model = "demo",
        data: Data = "demo",
        trials: Trials = DEFAULT_TRIALS,
        seconds: Seconds = None,
        plateau: Plateau = None,
        workers: Workers = None,
        seed: Seed = 0,
        cost: Cost = DEFAULT_COST,
        target_sparsity: Target = None,
        max_latency_ms: MaxLatency = None,
        min_accuracy: MinAccuracy = None,
        dense_blocks: DenseBlocks = "",
        sampler: Sampler = "portfolio",
        fidelities: Fidelities = "1",
        pruner: Pruner = "halving",
        warm_start: WarmStart = None,
        router_steps: RouterSteps = DEFAULT_ROUTER_STEPS,
        test_items: TestItems = DEFAULT_TEST_ITEMS,
        deterministic: Deterministic = False,
        trial_timeout: TrialTimeout = None,
        gpu_workers: GpuWorkers = 0,
        gpu_share: GpuShare = 1.0,
        ray_address: RayAddress = None,
        prefix_mb: PrefixMb = None,
        storage: Storage = DEFAULT_STORAGE,
        out: Out = None,
        overwrite: Overwrite = False,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        check_name(name)
        output_folder(name, out)
        config = checked_config(
            model,
            data,
            workers,
            trials=trials,
            seconds=seconds,
            plateau=plateau,
            seed=seed,
            cost=cost,
            target_sparsity=target_sparsity,
            max_latency_ms=max_latency_ms,
            min_accuracy=min_accuracy,
            dense_blocks=block_list(dense_blocks),
            sampler=sampler,
            fidelities=share_list(fidelities),
            pruner=pruner,
            warm_start=warm_start,
            router_steps=router_steps,
            test_items=test_items,
            deterministic=deterministic,
            trial_timeout=trial_timeout,
            gpu_workers=gpu_workers,
            gpu_share=gpu_share,
            ray_address=ray_address,
            prefix_mb=prefix_mb,
        )
        start_study(stage, name, storage, out, overwrite, as_json, config)

    return command


def checked_config(model: str, data: str, workers: int | None, **values: Any) -> RunConfig:
    """A configuration whose model and data are known to exist; nothing has been written yet."""
    from ftp_core.models import DEMO, resolve
    from search.workload import read_examples

    chosen = {} if workers is None else {"workers": workers}
    config = RunConfig.checked(model=model, data=data if data == DEMO else data_path(data), **chosen, **values)
    source = resolve(model)
    read_examples(config.data, config.seed, config.sizes)
    return config if model == DEMO else config.model_copy(update={"model": source})


def start_study(
    stage: Stage, name: str, storage: str, out: Path | None, overwrite: bool, as_json: bool, config: RunConfig
) -> None:
    """Create a study and run stages of its pipeline; it is created when model and data are known to be usable."""
    from search.feasibility import check_search
    from search.pipeline import Pipeline, load_with_progress
    from search.progress import ProgressView

    view = ProgressView(Console(stderr=True, markup=False))
    database = database_file(storage)
    fresh = database is not None and not database.exists()
    store = StudyStore(storage)
    try:
        taken = any(summary.name == name for summary in store.summaries())
        if config.warm_start is not None:
            if config.warm_start == name:
                raise ConfigError(f"--warm-start is {name!r}, which is the new study itself: name another one.")
            store.study(config.warm_start)
        if not (taken and not overwrite):
            workload = load_with_progress(config, view)
            check_search(config, workload, store)
        if taken and overwrite:
            store.delete_study(name)
        store.create_study(name, config.model_dump(), objective_names(config.cost))
    except BaseException:
        # Another process may have begun a study in it meanwhile.
        unused = fresh and not store.summaries()
        store.close()
        if unused and database is not None:
            for path in (database, Path(f"{database}-wal"), Path(f"{database}-shm")):
                path.unlink(missing_ok=True)
        raise
    with store:
        continue_study(stage, lambda lease: Pipeline(store, name, lease, view, workload), store, name, out, as_json)
