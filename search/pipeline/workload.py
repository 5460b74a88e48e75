"""Model and data of a study: loaded, compared with those that it began with, and noted as it begins."""

from __future__ import annotations

from ftp_core.skipping.substitutes import Substitutes, give_substitutes, substitutes_of
from search.config.run_config import RunConfig
from search.errors import SearchError
from search.inputs.data import MAX_CONTINUATION, Workload, load_workload
from search.inputs.examples import ReadSource
from search.inputs.fitted_keys import calibration_prompts, fit_keys, fits_keys
from search.inputs.same_inputs import check_same, check_same_elsewhere
from search.inputs.substitutes import substitute, substitute_for_costs, uses_substitutes
from search.progress.progress_view import ProgressView
from search.stages.open_study import OpenStudy
from search.stages.time_generation import check_lengths
from studies.records.study_facts import DataSource, LongCompletions, StudyFacts


def load_with_progress(config: RunConfig, view: ProgressView) -> Workload:
    """The model and data of a configuration, as `load_workload` reads them; what there is to say of them is said.

    Substitutes that a study uses are of zeros until it has begun (`give_substitutes_of`).
    """
    with view.stage("Loading model and data", 1) as stage:
        workload = load_workload(
            config.reference,
            config.data,
            config.seed,
            config.sizes,
            config.keep_first,
            config.device,
            config.dtype,
            config.form,
            view.stage,
            config.device_map,
            config.test_data,
        )
        stage.advance()
    view.tell([workload.model.placement])
    substitute_for_costs(config, workload.model.skipping)
    said = [workload.fewer_than_asked(config.search_items)]
    said += [f"Left out {_examples(n)} {reason}." for reason, n in workload.left_out.items()]
    if workload.shared_boundaries:
        said.append(
            f"In {_examples(workload.shared_boundaries)} one token spans the end of the prompt and the beginning of "
            "what follows: it counts as what follows."
        )
    said.append(workload.unprotected_beginning or "")
    if n_long := workload.long_completions:
        said.append(f"Of completions the first {MAX_CONTINUATION} tokens count: {n_long} have as many or more.")
    for sentence in filter(None, said):
        view.console.print(sentence, highlight=False)
    return workload


def _examples(n: int) -> str:
    return f"{n} example{'s' if n != 1 else ''}"


def check_workload(study: OpenStudy) -> None:
    """Compares model and data with those that a study began with, and checks that what is to be timed fits."""
    record, model = study.store.studies.get(study.name), study.workload.model
    check_same(record, {"model": model.fingerprint(), "data": study.workload.data_fingerprint})
    check_same_elsewhere(record, study.workload.tested_sources)
    before, keep_first = record.facts.keep_first, model.skipping.keep_first
    if record.facts.model_fingerprint is not None and before != keep_first:
        # What a system turn is made of hangs on the tokenizer's chat template, too.
        raise SearchError(
            f"Study {study.name!r} began with {before} protected tokens, and its system turn has {keep_first} now: its "
            "trials would not compare with new ones. Restore the tokenizer and its chat template, or start a new study."
        )
    check_lengths(study.config, study.workload, record.facts.timed_input)


def give_substitutes_of(study: OpenStudy) -> None:
    """Lets the maps that a study keeps stand in for what tokens skip; fits them, and keeps them, if it has none yet."""
    if not uses_substitutes(study.config):
        return
    model = study.workload.model.skipping
    if kept := study.store.substitutes.of(study.name):
        give_substitutes(model.model, Substitutes.from_bytes(kept), model.blocks)
        return
    substitute(study.config, study.workload, study.view.stage)
    fitted = substitutes_of(model.model)
    assert fitted is not None
    study.store.substitutes.keep(study.name, fitted.block_bytes())


def fit_keys_of(study: OpenStudy) -> None:
    """Lets keys of skipped tokens be fitted from now on if a study wants it, to the prompts that it keeps."""
    if not fits_keys(study.config):
        return
    prompts = study.store.fitted_prompts.of(study.name)
    if not prompts:
        prompts = calibration_prompts(study.config, study.workload)
        study.store.fitted_prompts.keep(study.name, prompts)
    fit_keys(study.workload.model.skipping, prompts, study.view.stage)


def note_workload(study: OpenStudy) -> None:
    """Notes the facts of model and data as the study begins, and of other data to test on whenever it goes on."""
    workload, known = study.workload, study.facts
    if known.model_fingerprint is not None:
        changes = StudyFacts(chance=workload.chance, test_sources=tuple(map(_recorded, workload.tested_sources)))
        if known.updated(changes) != known:
            study.note(changes)
    else:
        study.note(
            StudyFacts(
                model_fingerprint=workload.model.fingerprint(),
                data_fingerprint=workload.data_fingerprint,
                keep_first=workload.model.skipping.keep_first,
                n_blocks=workload.model.skipping.n_blocks,
                unprotected_beginning=workload.unprotected_beginning,
                left_out=workload.left_out,
                shared_boundaries=workload.shared_boundaries,
                long_completions=LongCompletions(MAX_CONTINUATION, workload.long_completions),
                split_sizes=workload.split_sizes,
                chance=workload.chance,
                fewer_items=workload.fewer_than_asked(study.config.search_items),
                sources=tuple(map(_recorded, workload.sources)),
                test_sources=tuple(map(_recorded, workload.tested_sources)),
            )
        )


def _recorded(source: ReadSource) -> DataSource:
    return DataSource(source.name, source.version, source.fingerprint, source.sizes)
