"""Evaluation of schedules in one process: this one, or a worker's."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import torch

from ftp_core.cost.process_memory import own_peak_bytes
from ftp_core.errors import CoreError
from ftp_core.loading.allocator import return_freed_memory
from ftp_core.loading.compiled_kernels import keep_few_kernels
from ftp_core.loading.models import load_model
from ftp_core.loading.reference import ModelName
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import Router, StaticRouter
from ftp_core.skipping.fitted_keys import fitted_keys_of, give_fitted_keys
from ftp_core.skipping.prefixes import PrefixStore
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.skipping.substitutes import give_substitutes, substitutes_of
from ftp_core.text.encoding import EncodedExample
from search.errors import EvaluationError
from search.evaluators import Evaluation, ItemKl, Task
from search.evaluators.shared_model import SharedModel
from search.problem.fidelities import part_ends

_Result = TypeVar("_Result")
# A pool replaces it by the number of the worker.
_WORKER = "0"
# Messages of torch's allocators that raise no error of their own type.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class LocalEvaluator:
    """One model in this process, worker 0; `next_results` evaluates what was submitted first.

    Schedules that begin alike share the work of the blocks that they have in common, see
    `ftp_core.skipping.prefixes`. When memory runs out, batches become half as large, and so does the memory of shared
    work, until it suffices.

    Args:
        model: The model.
        examples: The search set.
        fidelities: Shares of the set, ascending and ending with 1, at which its parts end.
        ablation_fidelity: Share of the set that is one part more, for ablations; none for the whole set, or for the
            first part.
        router: Router, which must not change; None for the static one.
        choices: True to score multiple-choice items, too, for the metric `accuracy`.
        batch_size: Prompts in a batch.
        prefix_bytes: Most memory for hidden states that schedules share; 0 shares none.
        fresh: Batches of other examples, the parts behind those of the search set. The dense model answers each when a
            task first asks for it; their evaluations have the KL of each item, and no other figure.

    Attributes:
        batch_size: Prompts in a batch now.

    Raises:
        ConfigError: The fidelities are no such shares, or a part would have no item.
        EvaluationError: The dense model does not run on the set.
    """

    capacity = 1

    def __init__(
        self,
        model: SkippingModel,
        examples: Sequence[EncodedExample],
        fidelities: Sequence[float] = (1.0,),
        router: Router | None = None,
        choices: bool = False,
        batch_size: int = 16,
        prefix_bytes: int = 0,
        fresh: Sequence[Sequence[EncodedExample]] = (),
        ablation_fidelity: float = 1.0,
    ) -> None:
        self.batch_size = batch_size
        self._model = model
        self._parts = [examples[start:end] for start, end in pairwise(part_ends(len(examples), fidelities))]
        self._n_searched = len(self._parts)
        self._parts += fresh
        if ablation_fidelity < 1.0 and ablation_fidelity != fidelities[0]:
            # The last one: see `ABLATION_PART`.
            self._parts.append(examples[: round(ablation_fidelity * len(examples))])
        self._router = router or StaticRouter()
        self._choices = choices
        self._prefixes = PrefixStore(prefix_bytes)
        self._sets: dict[int, QualitySet] = {}
        self._waiting: deque[Task] = deque()
        try:
            for part in range(self._n_searched):
                self._within_memory(partial(self._ready_set, part))
        except (MemoryError, RuntimeError) as error:
            raise EvaluationError(
                f"The dense model's answers could not be computed: {error}. If memory is short, give a smaller model, "
                "shorter examples, or more memory."
            ) from error

    @property
    def peak_bytes(self) -> int | None:
        """Most memory that this process has held, beside what it shares with others; None if unknown."""
        return own_peak_bytes(self._model.device)

    def submit(self, task: Task) -> None:
        """See `Evaluator.submit`."""
        self._waiting.append(task)

    def next_results(self, timeout_s: float | None = None) -> list[Evaluation]:
        """See `Evaluator.next_results`; one task, which is not interrupted when the time is up."""
        return [self.evaluate(self._waiting.popleft())] if self._waiting else []

    def evaluate(self, task: Task) -> Evaluation:
        """Evaluates a schedule on one part of the set; a failure is part of the evaluation."""
        started, nothing = time.perf_counter(), Evaluation(task, worker=_WORKER, began_at=time.time())
        compute = self._compare if task.part < self._n_searched else self._compare_items
        try:
            found = self._within_memory(partial(self._counted, compute, task))
        except (CoreError, RuntimeError, MemoryError) as error:
            seconds = time.perf_counter() - started
            error_text = f"{type(error).__name__}: {error}"
            return replace(nothing, seconds=seconds, error=error_text, peak_bytes=self.peak_bytes)
        figures = [*found.metrics.items(), *(("kl", item.kl) for item in found.items)]
        strange = [f"{name} is {value}" for name, value in figures if not math.isfinite(value)]
        found = replace(found, began_at=nothing.began_at, worker=nothing.worker, peak_bytes=self.peak_bytes)
        found = replace(found, seconds=time.perf_counter() - started)
        # A figure that is not finite cannot be compared, nor stored as JSON: the trial has failed.
        return replace(found, metrics={}, items=(), error="not finite: " + ", ".join(strange)) if strange else found

    def close(self) -> None:
        """See `Evaluator.close`."""
        self._waiting.clear()
        self._prefixes.clear()

    def _ready_set(self, part: int) -> QualitySet:
        if part not in self._sets:
            self._sets[part] = QualitySet(self._model, self._parts[part], self.batch_size)
        return self._sets[part]

    def _counted(self, compute: Callable[[Task], Evaluation], task: Task) -> Evaluation:
        """An evaluation with the numbers of blocks that it took."""
        store = self._prefixes
        run, reused = store.blocks_run, store.blocks_reused
        found = compute(task)
        return replace(found, blocks_run=store.blocks_run - run, blocks_reused=store.blocks_reused - reused)

    def _compare(self, task: Task) -> Evaluation:
        part = self._ready_set(task.part)
        quality = part.evaluate(task.schedule, self._router, self._choices, prefixes=self._prefixes)
        metrics = {"kl": quality.kl, "perplexity": quality.perplexity}
        if quality.accuracy is not None:
            metrics["accuracy"] = quality.accuracy
        return Evaluation(task, metrics, quality.n_tokens, quality.n_choice_items)

    def _compare_items(self, task: Task) -> Evaluation:
        if task.part not in self._sets:
            # What schedules share on other items is of no use here, and new answers need its memory.
            self._prefixes.clear()
            return_freed_memory()
        part = self._ready_set(task.part)
        found = part.per_item(task.schedule, self._router, choices=False, prefixes=self._prefixes)
        items = tuple(ItemKl(item.kl, item.n_tokens) for item in found)
        return Evaluation(task, n_tokens=sum(item.n_tokens for item in items), items=items)

    def _within_memory(self, compute: Callable[[], _Result]) -> _Result:
        """Halves batches until memory suffices; what was computed in larger ones differs by rounding and is dropped."""
        while True:
            try:
                return compute()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or (self.batch_size == 1 and self._prefixes.max_bytes == 0):
                    raise
            # Behind the handler: until then its traceback holds the tensors of the computation that failed.
            smaller = self._prefixes.max_bytes // 2 if self.batch_size > 1 else 0
            self._prefixes, self._sets = PrefixStore(smaller), {}
            self.batch_size = max(1, self.batch_size // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


class ModelSetup:
    """Makes evaluators of one model and one search set, with the arguments of `LocalEvaluator`.

    Made in the process that has the model, and pickled to the workers, whose weights lie in memory that they share (see
    `SharedModel`, which `on_one_machine` is for). A model that is spread over devices cannot be sent so: each worker
    loads it.

    Args:
        model: Model.
        examples: Search set.
        batch_size: Prompts in a batch.
        prefix_bytes: Memory for shared work.
        on_one_machine: Whether all workers are on this machine.
        loaded_by: Model and precision that workers load, over all GPUs that they see; None to send the given model.
        options: Other arguments of `LocalEvaluator`.

    Raises:
        EvaluationError: The model cannot be pickled.
    """

    def __init__(
        self,
        model: SkippingModel,
        examples: Sequence[EncodedExample],
        *,
        batch_size: int = 16,
        prefix_bytes: int = 0,
        on_one_machine: bool = False,
        loaded_by: tuple[ModelName, str] | None = None,
        **options: Any,
    ) -> None:
        self._model = loaded_by or SharedModel.of(model.model, on_one_machine)
        # A model that is sent brings its own.
        self._substitutes = substitutes_of(model.model) if loaded_by else None
        self._fitted_keys = fitted_keys_of(model.model) if loaded_by else None
        self._keep_first = model.keep_first
        self._examples, self._options = list(examples), options
        self._batch_size, self._prefix_bytes = batch_size, prefix_bytes

    def start(self, device: str, halvings: int) -> LocalEvaluator:
        """See `WorkerSetup.start`; halves the memory for shared work, too."""
        keep_few_kernels()
        if device == "cpu":
            # A worker has one core; more threads than that would fight with the other workers.
            torch.set_num_threads(1)
        if isinstance(self._model, SharedModel):
            placed: Any = self._model.load().to(device)
            model = SkippingModel(placed, self._keep_first)
        else:
            name, dtype = self._model
            model = load_model(name, device, dtype, device_map="auto").skipping.protecting(self._keep_first)
            give_substitutes(model.model, self._substitutes, model.blocks)
            give_fitted_keys(model.model, self._fitted_keys)
        return LocalEvaluator(
            model,
            self._examples,
            batch_size=max(1, self._batch_size >> halvings),
            prefix_bytes=_held_on(model.device, self._prefix_bytes) >> halvings,
            **self._options,
        )


def _held_on(device: torch.device, prefix_bytes: int) -> int:
    """Memory for shared work, which on a GPU is a part of what the model leaves."""
    if device.type != "cuda":
        return prefix_bytes
    return min(prefix_bytes, torch.cuda.mem_get_info(device)[0] // 4)


def is_out_of_memory(error: BaseException) -> bool:
    """True for errors of insufficient memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)
