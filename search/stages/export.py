"""Writes what a study found as a pruned model that loads like any other."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

from ftp_core.loading.models import load_model, load_published
from ftp_core.loading.reference import ModelReference
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.model.model_card import add_figures
from ftp_core.model.saving import check_directory, replacing
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.families import family_of
from ftp_core.skipping.fitted_keys import FittedKeys
from ftp_core.skipping.kept_projections import KeptProjections, give_kept_projections
from ftp_core.skipping.substitutes import Substitutes, give_substitutes, substitutes_of
from search.config.run_config import RunConfig
from search.inputs.data import load_workload
from search.inputs.fitted_keys import kept_prompts
from search.inputs.same_inputs import check_same, located
from search.inputs.substitutes import substitute, uses_substitutes
from search.stages.open_study import load_router
from search.stages.origin import chosen_number, origin_of, trial_to_use
from studies import ForeignResultsError, Measurement, StudyStore
from studies.records.study_facts import Origin
from studies.store.results_folder import MODEL_FILE, exported_in, own_origins

_ADVICE = "name another directory, or replace it with --overwrite"


def check_export(directory: Path, allowed: set[Origin], advice: str) -> None:
    """Refuses a directory whose pruned model is not of an allowed study, or that is or holds something else."""
    check_directory(directory)
    if not (directory / "config.json").exists():
        return
    found = exported_in(directory)
    if found is None:
        raise ForeignResultsError(f"{directory} holds a pruned model that no study is known to have written: {advice}.")
    if found not in allowed:
        raise ForeignResultsError(f"{directory} holds the pruned model of another study, {found}: {advice}.")


def export_study(
    store: StudyStore,
    name: str,
    directory: str | os.PathLike[str],
    include_base: bool = True,
    overwrite: bool = False,
    model: str | None = None,
    revision: str | None = None,
    adapter: str | None = None,
    trial: int | None = None,
) -> list[Path]:
    """Writes the pruned model with its tokenizer, and `schedule.json`, which says where it comes from.

    `ftp_core.FTPForCausalLM.from_pretrained(directory)` loads it.

    Args:
        store: Database of the study.
        name: Name of the study.
        directory: Directory to write to; made if missing.
        include_base: Whether to write the dense model's weights, too, or only where they lie.
        overwrite: Whether to replace another pruned model, or files of the same names; never a model that is not
            pruned.
        model: Path or id of the dense model now, which the study remembers if its database can be written to; None
            for the one that it knows.
        revision: The same for its revision on the Hub; a model that is on this machine now has none.
        adapter: The same for the directory of its adapter.
        trial: Number of the trial whose schedule and router are written; None for the one that was selected.

    Returns:
        The files written.

    Raises:
        SearchError: The study has no chosen schedule yet, or keeps no prompts that it fits keys to, or the trial no
            finite figures; or the dense model, or data
            that substitutes are fitted to, is not where it was, or another one.
        ForeignResultsError: The directory holds another pruned model, or files that would be replaced.
        CoreError: The directory is a file or holds another model, or the model cannot be loaded.
    """
    directory = Path(directory)
    study = store.studies.get(name)
    number = trial_to_use(store, name, trial).number
    if overwrite:
        check_directory(directory)
    else:
        check_export(directory, own_origins(study), _ADVICE)
    before = RunConfig.stored(study.config)
    said = {"model": model, "revision": revision, "adapter": adapter}
    config = RunConfig.stored(study.config, **{field: value for field, value in said.items() if value is not None})
    kept, prompts = store.substitutes.of(name), kept_prompts(store, name, config)
    # Studies of before kept none: calibration items say what they were.
    fits = uses_substitutes(config) and not kept
    config = located(name, before, config, ("model", "data") if fits else ("model",))
    substitutes = Substitutes.from_bytes(kept) if kept else None
    if fits:
        workload = load_workload(
            config.reference,
            config.data,
            config.seed,
            config.sizes,
            config.keep_first,
            dtype=config.dtype,
            form=config.form,
        )
        check_same(study, {"model": workload.model.fingerprint(), "data": workload.data_fingerprint})
        substitute(config, workload)
        substitutes = substitutes_of(workload.model.skipping.model)
        loaded = workload.model
    else:
        loaded = load_model(config.reference, dtype=config.dtype)
        check_same(study, {"model": loaded.fingerprint()})
    keys = None
    if prompts is not None:
        dense = loaded.skipping.protecting(study.facts.keep_first or 0)
        give_substitutes(dense.model, substitutes, dense.blocks)
        keys = FittedKeys(dense, prompts).of(dense, SparsitySchedule.of(store.trials.get(name, number).schedule))
    if config.reference != before.reference and not store.is_read_only:
        store.studies.set_config(name, config.model_dump())
    return write_export(store, name, directory, config.reference, include_base, overwrite, number, substitutes, keys)


def write_export(
    store: StudyStore,
    name: str,
    directory: Path,
    model: ModelReference,
    include_base: bool,
    overwrite: bool = False,
    number: int | None = None,
    substitutes: Substitutes | None = None,
    keys: KeptProjections | None = None,
) -> list[Path]:
    """`export_study` with a dense model that is known to be the study's, and with what belongs to its schedule.

    Weights that an adapter was merged into are always included: they lie nowhere else.

    Args:
        store: See `export_study`.
        name: See `export_study`.
        directory: See `export_study`.
        model: Dense model.
        include_base: See `export_study`.
        overwrite: See `export_study`.
        number: See `trial` of `export_study`.
        substitutes: The study's substitutes, if it uses any.
        keys: Projections that are fitted to the schedule, if they are fitted.
    """
    study = store.studies.get(name)
    chosen = chosen_number(study) if number is None else number
    if not overwrite:
        check_export(directory, own_origins(study), _ADVICE)
    is_own = overwrite or (directory / "config.json").exists()
    trial = store.trials.get(name, chosen)
    router = load_router(store, name, trial.router)
    dense, tokenizer = load_published(model)
    if substitutes is not None:
        # In the precision that the weights are written in; those of a running study stay as they are.
        give_substitutes(dense, deepcopy(substitutes).to(dense.dtype), family_of(dense.config).blocks_of(dense))
    if keys is not None:
        give_kept_projections(dense, deepcopy(keys).to(device=dense.device, dtype=dense.dtype))
    schedule = SparsitySchedule.of(trial.schedule)
    pruned = FTPForCausalLM.from_dense(dense, schedule, router.router, keep_first=study.facts.keep_first)
    origin = origin_of(study, trial, model, None if router.sha256 is None else (router.router.kind, router.sha256))
    with replacing(directory) as partial:
        pruned.save_pretrained(partial, include_base=include_base or model.adapter is not None)
        tokenizer.save_pretrained(partial)
        (partial / MODEL_FILE).write_text(json.dumps(origin, indent=2) + "\n")
        add_figures(partial, directory, _card_figures(store.results.measurements(name), trial.number))
        names = sorted(path.name for path in partial.iterdir())
        taken = [one for one in names if os.path.lexists(directory / one)]
        if taken and not is_own:
            raise ForeignResultsError(
                f"{directory} holds a file {taken[0]} of something else, which would be replaced: {_ADVICE}."
            )
    return [directory / name for name in names]


def _card_figures(measurements: Sequence[Measurement], trial: int) -> list[str]:
    """Markdown lines of a trial's figures on the test examples, beside the dense model's; none if it has none."""
    tested = [one for one in measurements if one.split == "test"]
    dense = next((one for one in tested if one.variant == "dense"), None)
    # The last is the one whose router the model has.
    pruned = next((one for one in reversed(tested) if one.trial == trial), None)
    if pruned is None:
        return []
    rows = [("dense", dense), ("pruned", pruned)]
    lines = [
        f"On {pruned.n_items} examples that nothing was chosen by, with 95 % intervals; latency is that of one prefill "
        f"of {pruned.batch} x {pruned.length} tokens on the machine of the search, with quartiles.",
        "",
        "| | KL, nats per token | perplexity | accuracy | FLOPs saved | ms |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows:
        if row is not None:
            saved = "" if dense is None else f"{1 - row.flops / dense.flops:.1%}"
            kl = _with_ends(row.kl, row.kl_low, row.kl_high, ".4f")
            perplexity = _with_ends(row.perplexity, row.perplexity_low, row.perplexity_high, ".3f")
            accuracy = _with_ends(row.accuracy, row.accuracy_low, row.accuracy_high, ".1%")
            latency = _with_ends(row.latency_ms, row.latency_low_ms, row.latency_high_ms, ".1f")
            lines.append(f"| {name} | {kl} | {perplexity} | {accuracy} | {saved} | {latency} |")
    return lines


def _with_ends(value: float | None, low: float | None, high: float | None, form: str) -> str:
    if value is None:
        return ""
    return f"{value:{form}}" + ("" if low is None or high is None else f" [{low:{form}}, {high:{form}}]")
