"""Measures in a few seconds how fast this machine evaluates schedules of a model, from a few examples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ftp_core.cost import Unchanged, time_generation, timing_batch
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.fitted_keys import fitted_keys_of
from ftp_core.text.encoding import EncodedExample
from search.config.run_config import RunConfig
from search.evaluators import Task
from search.evaluators.local import LocalEvaluator
from search.inputs.data import Workload, search_set

# What evaluating takes is known well enough once so many seconds of it were timed, or all examples were.
_ENOUGH_S = 0.5
_TIMES_AS_MANY = 4
# Tokens of prompts, and new ones, by which decoding is timed.
_SHORT_PROMPT, _NEW_TOKENS = 8, 4
# Overall sparsity of the schedules that a search without a target tries, on average.
_USUAL_SPARSITY = 0.4


@dataclass(frozen=True)
class Pace:
    """Seconds that parts of a run take on this machine, as it was when they were timed."""

    dense_s: float  # the dense model's answers to the search set, on one core
    evaluation_s: float  # a schedule on the search set, on one core
    fit_s: float  # fitting keys to a schedule, on one core; 0 where they are not fitted
    token_s: float  # a token through the dense model, on all cores of this process
    evaluated_token_s: float  # a token through a pruned model, compared with the dense one, likewise
    decoded_s: float  # a new token of every row of the timed input, in the dense model
    examples: int  # number of examples that were evaluated on one core


def measure_pace(config: RunConfig, workload: Workload, on_part: Callable[[], None]) -> Pace:
    """Times the dense model and one schedule on as few examples as suffice, in three parts."""
    model = workload.model.skipping
    usual = config.target_sparsity or _USUAL_SPARSITY
    schedule = SparsitySchedule.uniform(usual, model.n_blocks)
    choices = config.min_accuracy is not None

    def on_one_core(examples: Sequence[EncodedExample]) -> tuple[float, float]:
        began = time.perf_counter()
        evaluator = LocalEvaluator(model, examples, choices=choices)
        answered = time.perf_counter()
        evaluator.evaluate(Task(schedule))
        return answered - began, time.perf_counter() - answered

    def on_all_cores(examples: Sequence[EncodedExample]) -> tuple[float, float]:
        began = time.perf_counter()
        dense = QualitySet(model, examples)
        answered = time.perf_counter()
        dense.evaluate(schedule, StaticRouter())
        return answered - began, time.perf_counter() - answered

    searched = search_set(config, workload)
    with _one_thread():
        (dense_s, evaluation_s), n_examples = _timed(searched, on_one_core, choices)
    on_part()
    (token_s, evaluated_token_s), _ = _timed(workload.splits["validation"], on_all_cores, choices=False)
    on_part()
    keys, decoded_s = fitted_keys_of(model.model), _decoded_s(config, workload)
    on_part()
    return Pace(
        tokens(searched) * dense_s,
        tokens(searched, choices) * evaluation_s,
        0.0 if keys is None else keys.n_tokens * dense_s,
        # Threads that wait for each other on a busy machine can take many times as long as one; they do not keep to it.
        min(token_s, dense_s),
        min(evaluated_token_s, evaluation_s),
        decoded_s,
        n_examples,
    )


def tokens(examples: Sequence[EncodedExample], choices: bool = False) -> int:
    """Tokens of prompts and of what follows them: of every choice, or of the right one alone."""
    return sum(
        len(one.prompt) + (sum(map(len, one.continuations)) if choices else len(one.continuations[one.answer]))
        for one in examples
    )


def _decoded_s(config: RunConfig, workload: Workload) -> float:
    """Seconds for a new token of each row behind short prompts: weights are read in any case, what is held is less."""
    model, prompts = workload.model.skipping, [example.prompt for example in workload.splits["calibration"]]
    short = timing_batch(prompts, config.latency_batch, min(_SHORT_PROMPT, model.context - _NEW_TOKENS))
    [own] = time_generation(model, short.ids, [Unchanged()], [1, 1 + _NEW_TOKENS], repeats=3)
    # Other programs make a run slower, never faster.
    best_ms = min(last - first for first, last in zip(own[1], own[1 + _NEW_TOKENS], strict=True))
    return best_ms / (1000 * _NEW_TOKENS)


def _timed(
    examples: Sequence[EncodedExample], run: Callable[[Sequence[EncodedExample]], tuple[float, float]], choices: bool
) -> tuple[tuple[float, float], int]:
    """Seconds for each token that the dense and the compared part of a run take, and the number of examples timed."""
    dense_token_s = compared_token_s = math.inf
    # The first one twice, since what runs for the first time takes longer.
    n, runs = 1, 0
    while True:
        part = _spread(examples, n)
        dense_s, compared_s = run(part)
        runs += 1
        # Larger batches are the faster ones, and other programs make a run slower, never faster.
        dense_token_s = min(dense_token_s, dense_s / tokens(part))
        compared_token_s = min(compared_token_s, compared_s / tokens(part, choices))
        if runs > 1 and (dense_s + compared_s >= _ENOUGH_S or n == len(examples)):
            return (dense_token_s, compared_token_s), n
        n = n if runs == 1 else min(len(examples), _TIMES_AS_MANY * n)


def _spread(examples: Sequence[EncodedExample], n: int) -> list[EncodedExample]:
    """So many of the examples, evenly spread over lengths."""
    by_length = sorted(examples, key=lambda one: len(one.prompt))
    return [by_length[(2 * place + 1) * len(by_length) // (2 * n)] for place in range(n)]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Computes on one core, as a worker does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
