"""What benchmarks of routers compare on: disjoint examples, and schedules searched on some of them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ftp_core.demo.examples import demo_examples
from ftp_core.loading.models import LoadedModel
from ftp_core.routers import Router, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample, encode
from search.engine.engine import SearchEngine
from search.engine.portfolio import Portfolio
from search.engine.termination import Stopping
from search.evaluators.local import LocalEvaluator
from search.problem.costs import Costs
from search.problem.initial_design import ablations
from search.problem.objectives import Objectives
from search.problem.space import ScheduleSpace
from search.proposers.catalogue import PORTFOLIO_NAME, learn_from_ablations, make_proposers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from studies import Trial  # noqa: E402
from tests.search.synthetic import Notebook  # noqa: E402

SEARCH_ITEMS = 40
PROMPT_TOKENS, COMPLETION_TOKENS = 256, 64
# Of each process, for what schedules of one search have in common.
PREFIX_BYTES = 2**30


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    calibration: int = 256
    validation: int = 192
    test: int = 300
    trials: int = 200
    trials_again: int = 75
    steps: int = 40
    evaluate_every: int = 10

    def scaled(self, share: float) -> "Sizes":
        """A share of the items and of the steps of training."""
        names = ("calibration", "validation", "test", "steps")
        return replace(self, **{name: max(1, round(share * getattr(self, name))) for name in names})


def sampled_texts(loaded: LoadedModel, n: int, seed: int) -> list[EncodedExample]:
    """Texts that a model writes at temperature 1, cut into prompt and completion."""
    model, tokenizer = loaded.skipping.model, loaded.tokenizer
    context = loaded.skipping.context
    prompt_tokens = min(PROMPT_TOKENS, context * 3 // 4)
    total = min(prompt_tokens + COMPLETION_TOKENS, context)
    start = torch.full((64, 1), tokenizer.bos_token_id)
    found: dict[EncodedExample, None] = {}
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        while len(found) < n:
            texts = model.generate(start, do_sample=True, top_k=0, max_new_tokens=total - 1, pad_token_id=0)
            for ids in texts.tolist():
                if len(ids) == total and tokenizer.eos_token_id not in ids[1:]:
                    completion = tuple(ids[prompt_tokens:])
                    found[EncodedExample(tuple(ids[:prompt_tokens]), (completion,), 0, False)] = None
    return list(found)[:n]


def splits(loaded: LoadedModel, data: str, seed: int, sizes: Sizes) -> dict[str, list[EncodedExample]]:
    """Disjoint examples for search and training, for choosing, and for the figures."""
    wanted = {"calibration": sizes.calibration, "validation": sizes.validation, "test": sizes.test}
    if data == "sampled":
        texts = sampled_texts(loaded, sum(wanted.values()), seed)
        parts = {}
        for split, n in wanted.items():
            parts[split], texts = texts[:n], texts[n:]
        return parts
    context = loaded.skipping.context
    return {split: encode(loaded.tokenizer, demo_examples(split, n, seed), context) for split, n in wanted.items()}


def search(
    model: SkippingModel,
    examples: Sequence[EncodedExample],
    level: float,
    trials: int,
    seed: int,
    router: Router,
    warm: Sequence[Trial] = (),
    proposers: str = PORTFOLIO_NAME,
) -> tuple[list[SparsitySchedule], list[Trial]]:
    """Schedules of an overall sparsity, best first, as the portfolio finds them, and what became of each trial.

    Args:
        model: The model.
        examples: What to evaluate them on.
        level: Overall sparsity.
        trials: Schedules to evaluate.
        seed: Of the proposers.
        router: Decides which tokens are kept.
        warm: Outcomes of an earlier search: proposers learn from them, and their front is tried first.
        proposers: Who proposes.
    """
    space, notebook = ScheduleSpace(model.n_blocks, level), Notebook()
    length = max(len(example.prompt) for example in examples)
    costs = Costs(model, len(examples), length, router=None if router.kind == StaticRouter.kind else router)
    SearchEngine(
        space,
        Portfolio(make_proposers(proposers, space, seed), seed, by_trial=True),
        LocalEvaluator(model, examples, router=router, prefix_bytes=PREFIX_BYTES),
        Objectives(costs.function("flops")),
        notebook,
        seed=seed,
        warm=warm,
        ablations=ablations(space) if not warm and learn_from_ablations(proposers) else (),
    ).run(Stopping(trials))
    outcomes = [trial for trial in notebook.trials() if trial.values is not None]
    legal = [outcome for outcome in outcomes if outcome.total_violation == 0]
    ranked = sorted(legal, key=lambda outcome: (outcome.values[0], outcome.schedule))
    return [outcome.schedule for outcome in ranked], outcomes
