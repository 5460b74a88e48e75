"""Checks that a configuration allows a search, before there is a study."""

from __future__ import annotations

from ftp_core.errors import DataError, ModelError
from ftp_core.loading.placement import name_of
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.halves import names_of_halves
from ftp_core.training.substitution import check_prompts
from search.config.run_config import RunConfig
from search.errors import ConfigError
from search.inputs.data import Workload, search_set
from search.inputs.fitted_keys import calibration_prompts, fits_keys
from search.inputs.substitutes import uses_substitutes
from search.problem.costs import Costs
from search.problem.fidelities import part_ends
from search.problem.space import ScheduleSpace
from search.proposers.catalogue import make_proposers
from search.stages.measure import timed_length
from search.stages.search_schedules import schedule_space
from search.stages.time_generation import check_lengths
from studies import StudyStore


def check_search(config: RunConfig, workload: Workload, store: StudyStore) -> None:
    """Checks all that needs the model and the data, but no latency profile.

    Raises:
        ConfigError: No search can be made by the configuration, or from the study to start from.
        ModelError: The model's operations cannot be counted, its blocks skip as a whole only, or its keys cannot be
            fitted.
        DataError: Substitutes or keys cannot be fitted to the calibration items.
    """
    model = workload.model.skipping
    check_lengths(config, workload)
    # Trials remember their costs, so a model whose operations cannot be counted is refused here, and not by its first.
    Costs(model, batch=1, length=1).of(SparsitySchedule.uniform(0.0, model.n_blocks))
    space = foreseeable_space(config, workload)
    if (config.granularity, config.kv) != ("block", "drop"):
        names_of_halves(model.family, model.model.config.model_type)
    if uses_substitutes(config):
        check_prompts(workload.splits["calibration"])
    if fits_keys(config):
        _check_keys(config, workload)
    # Likewise one that cannot skip so.
    Costs(model, batch=1, length=1).of(space.schedule(space.even(len(space.free_genes) * min(1, space.top))))
    make_proposers(config.sampler, space, config.seed)
    # Short data may hold fewer examples than were asked for.
    part_ends(len(search_set(config, workload)), config.fidelities)
    if config.min_accuracy is not None and not any(item.has_choices for item in search_set(config, workload)):
        raise ConfigError(
            f"--min-accuracy is {config.min_accuracy:g}, but there is no multiple-choice item among the "
            f"{config.search_items} examples that schedules are evaluated on: give such data, or leave the option out."
        )
    if config.warm_start is not None:
        _check_warm_start(config, workload, store)


def foreseeable_space(config: RunConfig, workload: Workload) -> ScheduleSpace:
    """The space of a search, as far as it is known without a latency profile; a ConfigError if it is empty."""
    costs = Costs(workload.model.skipping, config.latency_batch, timed_length(config, workload))
    known = config.model_copy(update={"max_latency_ms": None, "target_speedup": None})
    return schedule_space(known, workload.model.skipping.n_blocks, costs)


def _check_keys(config: RunConfig, workload: Workload) -> None:
    try:
        prompts = calibration_prompts(config, workload)
    except ModelError as error:
        raise ModelError(f"{error} (--keys own)") from error
    if not prompts:
        raise DataError(
            "No calibration prompt has a second token, so that nothing could skip: give longer prompts, or --keys own."
        )


def _check_warm_start(config: RunConfig, workload: Workload, store: StudyStore) -> None:
    assert config.warm_start is not None
    other = store.studies.get(config.warm_start)
    own_dtype, dtype = name_of(workload.model.skipping.model.dtype), RunConfig.stored(other.config).dtype
    if dtype not in ("auto", own_dtype):
        raise ConfigError(
            f"--warm-start is {other.name!r}, whose model computes in {dtype}, and that of the new study in "
            f"{own_dtype}: results of two precisions do not compare. Give --dtype {dtype}, or name a study in "
            f"{own_dtype}."
        )
    compared = (
        ("model", other.facts.model_fingerprint, workload.model.fingerprint()),
        ("data", other.facts.data_fingerprint, workload.data_fingerprint),
    )
    for what, fingerprint, own in compared:
        if fingerprint != own:
            raise ConfigError(
                f"--warm-start is {other.name!r}, but its {what} is not that of the new study, so that its results say "
                "nothing there: name a study of the same model and data."
            )
    protected, own_protected = other.facts.keep_first, workload.model.skipping.keep_first
    if protected != own_protected:
        raise ConfigError(
            f"--warm-start is {other.name!r}, which protects the first {protected} tokens of prompts, and not "
            f"{own_protected}: results do not compare."
        )
    if (rank := other.config.get("substitute", 0)) != config.substitute:
        raise ConfigError(
            f"--warm-start is {other.name!r}, where substitutes of skipped halves have rank {rank}, and not "
            f"{config.substitute}: results do not compare."
        )
    if (keys := other.config.get("keys", "own")) != config.keys:
        raise ConfigError(
            f"--warm-start is {other.name!r}, where keys of skipped tokens are {keys}, and not {config.keys}: results "
            "do not compare."
        )
    if other.config.get("search_items") != config.search_items:
        raise ConfigError(
            f"--warm-start is {other.name!r}, which evaluates on {other.config.get('search_items')} items, and not on "
            f"{config.search_items}: results do not compare."
        )
