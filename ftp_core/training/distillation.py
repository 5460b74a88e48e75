"""Distils a router from the dense model's predictions; only the router learns."""

from __future__ import annotations

import copy
import hashlib
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import ceil
from numbers import Real
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from ftp_core.cost.process_memory import peak_bytes, reset_peak
from ftp_core.errors import CoreError
from ftp_core.loading.allocator import return_freed_memory
from ftp_core.loading.identity import model_identity
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import FEATURES, FEATURES_OF_HALVES, DynamicRouter, GateRouter, ScoringRouter, router_to_bytes
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.fitted_keys import keys_fitted
from ftp_core.skipping.prefixes import PrefixStore
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample, check_readable, encoded_fingerprint, length_sorted_batches
from ftp_core.training.batch_progress import BatchProgress
from ftp_core.training.distillation_config import DistillationConfig
from ftp_core.training.gated import gated_forward
from ftp_core.training.memory import recomputes_blocks
from ftp_core.training.teacher import Lesson, Teacher
from ftp_core.training.training_state import TrainingState

# Prompts in a batch of the held-out set.
_HELD_OUT_BATCH = 16
CURVES = ("step", "loss", "guide", "sparsity", "distill", "held_out_step", "held_out_kl")


@dataclass
class Distillation:
    """A distilled router and how it came about.

    Attributes:
        router: The router with the lowest held-out KL of the run; the last one if it is a `GateRouter`.
        curves: "step", "loss", "guide", "sparsity", "distill", one entry a step; "held_out_step" (steps done; 0 is
            the static router's decisions, if considered, or else the router as given) with "held_out_kl".
        seconds: Training time, over all runs if it was resumed.
        tokens: Tokens that the router was trained on, repeated ones included.
        peak_bytes: Peak memory: on a GPU torch's during this run, the dense model's pass included; else the process's
            since it started.
        parameters: Number of trained parameters.
    """

    router: ScoringRouter
    curves: dict[str, list[float]]
    seconds: float
    tokens: int
    peak_bytes: int
    parameters: int


def distill(
    model: SkippingModel | PreTrainedModel,
    data: Sequence[EncodedExample],
    schedules: Sequence[Sequence[float]] | Sequence[float],
    config: DistillationConfig | None = None,
    *,
    held_out: QualitySet | Sequence[EncodedExample] | None = None,
    router: ScoringRouter | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    static_kl: float | None = None,
    prefixes: PrefixStore | None = None,
    on_step: Callable[[int, float], None] = lambda step, kl: None,
    on_taught: Callable[[], None] = lambda: None,
    on_progress: Callable[[float], None] = lambda share: None,
    give_up_above: float | None = None,
) -> Distillation:
    """Train a router on one schedule, or on several in turn; the model's weights never change.

    The loss is `w_guide * guide_loss + w_sparsity * sparsity_loss + w_distill * distillation_loss`, with z the router's
    scores, p = sigmoid(z) and s_i the schedule (formulas and sources in `ftp_core.training.losses`):

    - guide: mean over tokens of -[y log p + (1 - y) log(1 - p)], y the static router's decision; its weight decays;
    - sparsity: mean over blocks of max(0, s_i - mean_j(1 - p_ij))^2, or the `budget_loss` of a `GateRouter`;
    - distillation: T^2 KL(dense || pruned) at temperature T, over the completion's tokens.

    Gradients reach the router through the gates of its hard decisions, straight through (`ftp_core.training.gated`).

    Args:
        model: A transformers model, which gets its modes and gradients back afterwards; an `FTPForCausalLM`, of which
            the dense model and the protected tokens count; or a `SkippingModel`.
        data: Training examples, as `ftp_core.encode` makes them.
        schedules: Schedules for the router, one sparsity per block each or with halves, or a single one; held-out KL is
            the mean over them.
        config: Hyperparameters.
        held_out: Examples to choose the best router on; must not share any with `data`. By default an eighth of the
            data is set aside.
        router: Router to train further; by default a fresh dynamic router, which is told the half that it decides if a
            schedule tells halves apart.
        checkpoint: File that is written at each evaluation; if it exists, training goes on from there, to the same
            router as without the break. Everything else must be as it was, the initial router included.
        static_kl: Held-out KL of the static router's decisions, the mean over the schedules, if it is known.
        prefixes: Store of states that evaluations on the held-out set share; saves time and changes no result.
        on_step: Called with the step and the best held-out KL so far.
        on_taught: Called after each batch of the dense model's pass over `data`, which precedes the steps.
        on_progress: Called after each batch of that pass, of a step or of an evaluation, with the share of all batches
            that are done; 1 at the end.
        give_up_above: Held-out KL above which the training ends, if none was lower until half of its steps are taken;
            None to go on.

    Returns:
        The router with the lowest held-out KL; the static router's decisions, if none was lower. Of a `GateRouter` the
        last state, as each one skips another share of tokens.

    Raises:
        ScheduleError: A schedule has another number of blocks than the model, or a value outside the range.
        ModelError: The model cannot skip tokens, or the router does not fit it.
        CoreError: No schedule skips anything, the data is too little or not encoded, the checkpoint belongs to another
            run, or the loss is not finite (the error names the step and the file with its inputs).
    """
    config = config or DistillationConfig()
    for name, examples in (("data", data), ("held_out", held_out)):
        if isinstance(examples, Sequence) and not examples:
            raise CoreError(f"There is no example in {name}: give at least one.")
    with _skipping(model) as skipping:
        checked = _schedules(skipping, schedules)
        check_readable(data, skipping.context, skipping.model.config.vocab_size)
        reset_peak(skipping.device)
        if held_out is None:
            data, held_out = set_aside(data)
        n_lessons, is_set = ceil(len(data) / config.batch_size), isinstance(held_out, QualitySet)
        n_held_out = held_out.n_batches if isinstance(held_out, QualitySet) else ceil(len(held_out) / _HELD_OUT_BATCH)
        n_dense = n_lessons + (0 if is_set else n_held_out)
        progress = BatchProgress(on_progress, config, n_dense, n_held_out * len(checked))
        if not isinstance(held_out, QualitySet):
            held_out = QualitySet(skipping, held_out, _HELD_OUT_BATCH, progress.advance)
        held_out.check_model(skipping)
        run = _Run(
            skipping,
            checked,
            config,
            held_out,
            _fresh_router(config, checked) if router is None else router,
            static_kl,
            PrefixStore(0) if prefixes is None else prefixes,
            None if checkpoint is None else Path(checkpoint),
            progress,
            give_up_above,
        )
        return run.train(data, on_step, on_taught)


@contextmanager
def _skipping(model: SkippingModel | PreTrainedModel) -> Iterator[SkippingModel]:
    """The model as one that skips; a transformers model gets its modes and gradients back."""
    if isinstance(model, SkippingModel):
        yield model
        return
    if not isinstance(model, PreTrainedModel):
        raise CoreError(
            f"The model to distil a router for is a {type(model).__name__}, but must be a transformers model or a "
            "SkippingModel: load one with transformers, or take `.skipping` of what ftp_core.load_model returns."
        )
    # Not by its class, whose module need not be loaded.
    is_pruned = model.config.model_type == "ftp"
    dense: PreTrainedModel = cast(Any, model).base if is_pruned else model
    modes = [(module, module.training) for module in dense.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in dense.parameters()]
    try:
        yield SkippingModel(dense, cast(Any, model).keep_first if is_pruned else 0)
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in gradients:
            parameter.requires_grad_(requires_grad)


def _schedules(
    model: SkippingModel, schedules: Sequence[Sequence[float]] | Sequence[float]
) -> tuple[SparsitySchedule, ...]:
    """The schedules that were given, one or several, checked."""
    if not len(schedules):
        raise CoreError("There is no schedule for the router to serve: give at least one.")
    several: Sequence[Any] = (schedules,) if isinstance(schedules[0], Real) else schedules
    checked = tuple(model.checked(values) for values in several)
    if not any(any(schedule) for schedule in checked):
        raise CoreError("No schedule skips anything, so a router has nothing to decide: give one with sparsity.")
    return checked


def _fresh_router(config: DistillationConfig, schedules: Sequence[SparsitySchedule]) -> DynamicRouter:
    features = FEATURES if all(schedule.is_plain for schedule in schedules) else FEATURES_OF_HALVES
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        router = DynamicRouter(config.window, features)
        if config.start == "static":
            router.start_as_static()
        return router


def _paper_features(router: ScoringRouter) -> tuple[str, ...] | None:
    """Features of a dynamic router that misses none of the paper's; None for other routers."""
    if isinstance(router, DynamicRouter) and router.features in (FEATURES, FEATURES_OF_HALVES):
        return router.features
    return None


def set_aside(data: Sequence[EncodedExample]) -> tuple[list[EncodedExample], list[EncodedExample]]:
    """Sets an eighth of examples aside, by content, so that the order does not matter.

    Returns:
        The others, and those that are set aside.

    Raises:
        CoreError: There are fewer than two distinct ones.
    """
    distinct = sorted(set(data), key=lambda example: hashlib.sha256(repr(example).encode()).digest())
    n_aside = max(1, len(distinct) // 8)
    if len(distinct) < 2:
        raise CoreError(f"{len(distinct)} distinct examples are too few to train on some and to hold out others.")
    return distinct[n_aside:], distinct[:n_aside]


@dataclass
class _Run:
    """One training of a copy of a router, with arguments of `distill`."""

    model: SkippingModel
    schedules: Sequence[SparsitySchedule]
    config: DistillationConfig
    held_out: QualitySet
    router: ScoringRouter
    static_kl: float | None
    prefixes: PrefixStore
    checkpoint: Path | None
    progress: BatchProgress
    give_up_above: float | None

    def __post_init__(self) -> None:
        self.router = router = copy.deepcopy(self.router)
        router.trained_for = model_identity(self.model.model)
        router.set_thresholds(None, None)
        router.check_model(self.model.n_blocks, self.model.model.config.hidden_size)
        router.to(self.model.device).train().requires_grad_(True)
        self.optimizer = torch.optim.AdamW(router.parameters(), lr=self.config.lr, weight_decay=0.0)
        self.state = TrainingState(random.Random(self.config.seed), {name: [] for name in CURVES})
        self.best: ScoringRouter = copy.deepcopy(router)
        self.teacher = Teacher(self.model, self.config)

    def _fingerprint(self, data: Sequence[EncodedExample]) -> str:
        """A hash over all that the outcome depends on, the initial router included."""
        # The router's file names its model.
        facts = (
            encoded_fingerprint(data),
            self.held_out.fingerprint,
            [tuple(schedule) for schedule in self.schedules],
            self.config,
            router_to_bytes(self.router),
            self.model.keep_first,
        )
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def train(
        self, data: Sequence[EncodedExample], on_step: Callable[[int, float], None], on_taught: Callable[[], None]
    ) -> Distillation:
        """See `distill`."""
        config, state, checkpoint, fingerprint = self.config, self.state, self.checkpoint, self._fingerprint(data)
        # Batches of similar lengths, in an order shuffled anew every epoch; the teacher speaks once for each.
        lessons = []
        for examples in length_sorted_batches(data, config.batch_size):
            lessons.append(self.teacher.lesson(examples))
            self.progress.advance()
            on_taught()
        if checkpoint is not None and checkpoint.exists():
            self.best.load_state_dict(state.load(checkpoint, fingerprint, self.router, self.optimizer))
            self.progress.skip_steps(state.step)
        elif config.consider_static and (features := _paper_features(self.router)) is not None:
            # The static router's decisions are considered, as a router of the same class as the one that learns, so
            # that either can be a checkpoint's best.
            static = DynamicRouter.static(self.router.window, features).to(self.model.device)
            static.trained_for = self.router.trained_for
            self._hold_out(static, self.static_kl)
        else:
            # No router is returned that is worse than the given one.
            self._hold_out(self.router)
        has_halves = not all(schedule.is_plain for schedule in self.schedules)
        self.checkpointing = recomputes_blocks(self.model, data, config, has_halves)
        return_freed_memory()
        before, started = state.seconds, time.monotonic()
        while state.step < config.steps and not self._is_out_of_patience() and not self._is_hopeless():
            self._step(lessons)
            state.seconds = before + time.monotonic() - started
            if state.step % config.evaluate_every == 0 or state.step == config.steps:
                self._hold_out(self.router)
                if checkpoint is not None:
                    state.save(checkpoint, fingerprint, self.router, self.optimizer, self.best)
            on_step(state.step, state.best_kl)
        self.progress.end()
        router = self.best.eval().requires_grad_(False)
        n_parameters = sum(parameter.numel() for parameter in router.parameters())
        peak = peak_bytes(self.model.device)
        return Distillation(router, state.curves, state.seconds, state.tokens, peak, n_parameters)

    def _is_out_of_patience(self) -> bool:
        held, patience = self.state.curves["held_out_kl"], self.config.patience
        return patience is not None and len(held) - 1 - held.index(min(held)) >= patience if held else False

    def _is_hopeless(self) -> bool:
        steps = self.state.curves["held_out_step"]
        is_late = bool(steps) and 2 * steps[-1] >= self.config.steps
        return self.give_up_above is not None and is_late and self.state.best_kl > self.give_up_above

    def _hold_out(self, candidate: ScoringRouter, kl: float | None = None) -> None:
        """Compare a router with the best so far; a KL that is given is not computed again."""
        # Evaluations and steps have buffers of other sizes: what one leaves in the allocator is no use to the other.
        return_freed_memory()
        # A copy: prefixes are stored by router, which must not change.
        candidate = copy.deepcopy(candidate).eval()
        if kl is None:
            evaluate = partial(self.held_out.evaluate, prefixes=self.prefixes, on_batch=self.progress.advance)
            kl = fmean(evaluate(schedule, candidate).kl for schedule in self.schedules)
            self.prefixes.forget(candidate)
        else:
            self.progress.skip_evaluation()
        self.state.add(held_out_step=self.state.step, held_out_kl=kl)
        # Gates with one budget skip another share of tokens in each state, so that a lower KL says nothing.
        if kl < self.state.best_kl or isinstance(candidate, GateRouter):
            self.state.best_kl, self.best = kl, candidate
        return_freed_memory()

    def _step(self, lessons: Sequence[Lesson]) -> None:
        config, state = self.config, self.state
        progress = state.step / config.steps
        self.optimizer.param_groups[0]["lr"] = config.lr_at(state.step)
        w_guide = config.w_guide * max(0.0, 1 - progress / config.guide_share) if config.guide_share > 0 else 0.0
        self.optimizer.zero_grad(set_to_none=True)
        sums = dict.fromkeys(("loss", "guide", "sparsity", "distill"), 0.0)
        for turn in range(config.accumulate):
            lesson = lessons[state.next_lesson(len(lessons))]
            schedule = self.schedules[(state.step * config.accumulate + turn) % len(self.schedules)]
            with keys_fitted(self.model, schedule), _precision(self.model.device, config.autocast):
                hidden_TD, guide, sparsity = gated_forward(
                    self.model,
                    self.router,
                    lesson.batch,
                    schedule,
                    config.symmetric_sparsity,
                    self.checkpointing,
                )
                distilled = self.teacher.loss(hidden_TD, lesson)
            loss = w_guide * guide + config.w_sparsity * sparsity + config.w_distill * distilled
            if not bool(torch.isfinite(loss)):
                raise self._not_finite(float(loss.detach()), lesson, schedule)
            (loss / config.accumulate).backward()
            for name, part in zip(sums, (loss, guide, sparsity, distilled), strict=True):
                sums[name] += float(part.detach()) / config.accumulate
            state.tokens += lesson.batch.n_tokens
            self.progress.advance()
        nn.utils.clip_grad_norm_(self.router.parameters(), config.max_grad_norm)
        self.optimizer.step()
        state.add(step=state.step, **sums)
        state.step += 1

    def _not_finite(self, loss: float, lesson: Lesson, schedule: SparsitySchedule) -> CoreError:
        folder = Path(tempfile.mkdtemp(prefix="ftp-distill-")) if self.checkpoint is None else self.checkpoint.parent
        # The checkpoint's own folder is only made with the first checkpoint.
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"failed-step-{self.state.step}.safetensors"
        inputs = {
            "ids": lesson.batch.ids,
            "prompt_lengths": lesson.batch.prompt_lengths,
            "schedule": torch.tensor(list(schedule)),
            **{f"router.{name}": tensor for name, tensor in self.router.state_dict().items()},
        }
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in inputs.items()}, path)
        return CoreError(
            f"The router's loss is {loss} at step {self.state.step} under the schedule {schedule}: lower the learning "
            f"rate, or look at the inputs of that step in {path}."
        )


def _precision(device: torch.device, autocast: bool) -> AbstractContextManager[Any]:
    return torch.autocast("cuda", torch.bfloat16) if autocast and device.type == "cuda" else nullcontext()
