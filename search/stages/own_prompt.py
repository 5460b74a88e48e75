"""One's own prompt under a trial's schedule: the blocks that its tokens run, and what both models answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ftp_core.cost.flops import FlopsCounter
from ftp_core.errors import DataError
from ftp_core.loading.models import load_model, load_tokenizer
from ftp_core.routers import StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.substitutes import Substitutes, give_substitutes
from ftp_core.text.boundary import divide
from ftp_core.text.chat import as_chat
from ftp_core.text.data import Example
from ftp_core.text.encoding import EncodedExample
from search.config.run_config import RunConfig
from search.config.study_name import resume_command
from search.errors import SearchError
from search.inputs.fitted_keys import fit_keys, kept_prompts
from search.inputs.same_inputs import check_same, located
from search.inputs.substitutes import uses_substitutes
from search.stages.completions import blocks_run, greedy_answers
from search.stages.open_study import load_router
from studies import StudyStore, Trial


@dataclass(frozen=True)
class OwnPrompt:
    """A prompt under the schedule of a trial.

    Attributes:
        study: Name of the study.
        trial: Number of the trial.
        overall_sparsity: Its overall sparsity.
        router: Kind of its router.
        n_tokens: Tokens of the prompt, with special ones that the tokenizer puts before it.
        n_blocks: Blocks of the model.
        tokens: The prompt piece by piece; joined they are the prompt as the model reads it.
        blocks_run: Number of blocks that each piece runs; a half counts half.
        dense: Answer of the dense model.
        pruned: Answer under the schedule.
        flops_saved: Share of the dense prefill's FLOPs.
    """

    study: str
    trial: int
    overall_sparsity: float
    router: str
    n_tokens: int
    n_blocks: int
    tokens: tuple[str, ...]
    blocks_run: tuple[float, ...]
    dense: str
    pruned: str
    flops_saved: float


def run_prompt(
    store: StudyStore, name: str, trial: Trial, text: str, new_tokens: int, settings: Mapping[str, Any]
) -> OwnPrompt:
    """Runs a prompt densely and under the schedule of a trial with its router, and continues it greedily.

    The text is encoded before any weights are read, as the study's prompts are: without white space at its end, and by
    the chat template if they are chats. The study stays as it is.

    Args:
        store: Database of the study.
        name: Name of the study.
        trial: The trial.
        text: The prompt.
        new_tokens: Most tokens of an answer.
        settings: Settings of places that have changed since the study ran.

    Raises:
        SearchError: The model is not where it was, or another one; or the study keeps no substitutes, or no prompts to
            fit keys to, that it uses.
        DataError: The text has no tokens, or more than the model reads.
        ModelError: The model cannot be loaded.
    """
    study = store.studies.get(name)
    config = located(name, RunConfig.stored(study.config), RunConfig.stored(study.config, **settings), ("model",))
    tokenizer, context = load_tokenizer(config.reference)
    example = _encoded(tokenizer, text, context, config.form.chat)
    router = load_router(store, name, trial.router)
    substitutes, prompts = _substitutes(store, name, config), kept_prompts(store, name, config)
    loaded = load_model(config.reference, config.device, config.dtype, config.device_map)
    check_same(study, {"model": loaded.fingerprint()})
    model = loaded.protecting(study.facts.keep_first).skipping
    if substitutes is not None:
        give_substitutes(model.model, substitutes, model.blocks)
    if prompts is not None:
        fit_keys(model, prompts)
    schedule, dense = SparsitySchedule.of(trial.schedule), SparsitySchedule.uniform(0.0, model.n_blocks)
    pieces = blocks_run(model, tokenizer, example, schedule, router.router)
    (plain,) = greedy_answers(model, tokenizer, [example], dense, StaticRouter(), new_tokens)
    (pruned,) = greedy_answers(model, tokenizer, [example], schedule, router.router, new_tokens)
    n_tokens = len(example.prompt)
    counter, listens = FlopsCounter(model), None if router.number is None else router.router
    flops = counter.count(schedule, 1, n_tokens, router=listens).total
    return OwnPrompt(
        study=name,
        trial=trial.number,
        overall_sparsity=trial.overall_sparsity,
        router=router.router.kind,
        n_tokens=n_tokens,
        n_blocks=model.n_blocks,
        tokens=tuple(piece for piece, _ in pieces),
        blocks_run=tuple(round(count, 3) for _, count in pieces),
        dense=plain,
        pruned=pruned,
        flops_saved=1 - flops / counter.count(dense, 1, n_tokens).total,
    )


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str, context: int, is_chat: bool) -> EncodedExample:
    """The prompt alone, with room for a token of the answer."""
    if is_chat:
        text = as_chat(tokenizer, Example(text, " ")).prompt
    prompt = divide(tokenizer, text, ("",)).prompt
    if not prompt:
        raise DataError("The text has no token that the model knows: give it some words.")
    most = context - 1
    if len(prompt) > most:
        raise DataError(
            f"The text has {len(prompt)} tokens, but {most} fit: the model reads {context}, of which one is left for "
            f"the answer. Shorten it by {len(prompt) - most} tokens."
        )
    # What follows is not known: any token stands for it.
    return EncodedExample(prompt, ((0,),), 0, has_choices=False)


def _substitutes(store: StudyStore, name: str, config: RunConfig) -> Substitutes | None:
    """What stands in for halves that tokens skip; None if the study uses nothing."""
    if not uses_substitutes(config):
        return None
    kept = store.substitutes.of(name)
    if not kept:
        raise SearchError(
            f"Study {name!r} uses substitutes of skipped halves, but has kept none: "
            f"`{resume_command(repr(store), name)}` fits them again, and keeps them."
        )
    return Substitutes.from_bytes(kept)
