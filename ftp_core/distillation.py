"""Distils a router: the dense model teaches, the static router lends a crutch, only the router learns."""

from __future__ import annotations

import copy
import hashlib
import math
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ftp_core.encoding import IGNORED, EncodedExample, answer_batch, length_sorted_batches, prompt_batch
from ftp_core.errors import CoreError
from ftp_core.gated import GatedModel, TrainingBatch
from ftp_core.identity import model_identity
from ftp_core.losses import distillation_loss, top_k_distillation_loss
from ftp_core.quality import QualitySet
from ftp_core.routers import DEFAULT_WINDOW, FEATURES, DynamicRouter, ScoringRouter, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping_model import SkippingModel
from ftp_core.training_state import TrainingState

CURVES = ("step", "loss", "guide", "sparsity", "distill", "held_out_step", "held_out_kl")


@dataclass(frozen=True)
class DistillationConfig:
    """Hyperparameters of a distillation.

    Attributes:
        steps: Optimizer steps at most.
        batch_size: Prompts in a batch.
        accumulate: Batches a step; their gradients are averaged.
        lr: Peak learning rate of AdamW; warm-up over a tenth of the steps, then cosine.
        w_guide: Weight of the guide loss at the start; it decays linearly to 0 over `guide_share` of the steps.
        guide_share: Share of the steps in which the guide loss has weight.
        w_sparsity: Weight of the sparsity loss.
        symmetric_sparsity: Whether skipping more than asked is punished, too.
        w_distill: Weight of the distillation loss.
        temperature: T of the distillation loss.
        teacher_top_k: Cache only the k likeliest tokens of the teacher's predictions; None for all of them (kept as
            final hidden states, D numbers a token).
        max_grad_norm: Gradients are scaled down to this norm.
        window: W of the attention features.
        evaluate_every: Steps between evaluations on the held-out set; the best router seen there is kept.
        patience: Stop after so many evaluations without a better router; None to go on.
        consider_static: Whether the static router's decisions take part in the choice on the held-out set, so that no
            router is kept that is worse there.
        gradient_checkpointing: Whether to compute blocks twice instead of keeping what they computed.
        autocast: Whether to compute in bfloat16 on a GPU.
        seed: Of the initial weights and the order of examples.
    """

    steps: int = 80
    batch_size: int = 8
    accumulate: int = 1
    lr: float = 0.005
    w_guide: float = 0.3
    guide_share: float = 0.3
    w_sparsity: float = 1.0
    symmetric_sparsity: bool = False
    w_distill: float = 1.0
    temperature: float = 1.0
    teacher_top_k: int | None = None
    max_grad_norm: float = 1.0
    window: int = DEFAULT_WINDOW
    evaluate_every: int = 20
    patience: int | None = None
    consider_static: bool = True
    gradient_checkpointing: bool = False
    autocast: bool = True
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass
class Distillation:
    """A distilled router and how it came about.

    Attributes:
        router: The one with the lowest held-out KL of the run.
        curves: "step", "loss", "guide", "sparsity", "distill", one entry a step; "held_out_step" (steps done; 0 is the
            static router's, if it was considered) with "held_out_kl".
        seconds: Training time, over all runs if it was resumed.
        tokens: Tokens that the router was trained on, repeated ones included.
        peak_bytes: Most memory that the process (on a GPU: torch) has taken.
        parameters: How many were trained.
    """

    router: ScoringRouter
    curves: dict[str, list[float]]
    seconds: float
    tokens: int
    peak_bytes: int
    parameters: int


@dataclass(frozen=True)
class _Lesson:
    """A batch with what the teacher says of it."""

    batch: TrainingBatch
    hidden: Tensor | None
    log_probs: Tensor | None = None
    tokens: Tensor | None = None


class _Teacher:
    """The dense model's predictions at completion tokens, computed once."""

    def __init__(self, model: SkippingModel, config: DistillationConfig) -> None:
        self._model = model
        self._config = config
        self._dense = SparsitySchedule.uniform(0.0, model.n_blocks)

    def lesson(self, examples: Sequence[EncodedExample]) -> _Lesson:
        model, top_k = self._model, self._config.teacher_top_k
        batch = TrainingBatch.of(examples, model.device)
        hidden = self.hidden(examples)
        if top_k is None:
            return _Lesson(batch, hidden)
        log_probs = (model.logits(hidden).float() / self._config.temperature).log_softmax(-1)
        best = log_probs.topk(min(top_k, log_probs.shape[-1] - 1), dim=-1)
        return _Lesson(batch, None, best.values.clone(), best.indices.clone())

    def hidden(self, examples: Sequence[EncodedExample]) -> Tensor:
        """The dense model's final hidden states at every completion token of a batch `[n, D]`, row by row."""
        answers = answer_batch(examples).to(self._model.device)
        prefill = self._model.prefill(prompt_batch(examples), self._dense, StaticRouter())
        hidden = self._model.continuation_hidden(prefill, answers)
        # A copy, because autograd refuses tensors made in inference mode.
        return hidden[answers.ids != IGNORED].clone()

    def loss(self, logits: Tensor, lesson: _Lesson) -> Tensor:
        temperature = self._config.temperature
        if lesson.hidden is not None:
            with torch.no_grad():
                teacher = self._model.logits(lesson.hidden)
            return distillation_loss(logits, teacher, temperature)
        assert lesson.log_probs is not None
        assert lesson.tokens is not None
        return top_k_distillation_loss(logits, lesson.log_probs, lesson.tokens, temperature)


def distill(
    model: SkippingModel,
    data: Sequence[EncodedExample],
    schedules: Sequence[SparsitySchedule],
    config: DistillationConfig | None = None,
    *,
    held_out: QualitySet | None = None,
    router: ScoringRouter | None = None,
    checkpoint: Path | None = None,
    on_step: Callable[[int, float], None] = lambda step, kl: None,
    on_taught: Callable[[], None] = lambda: None,
) -> Distillation:
    """Train a router on one schedule, or on several in turn; the model's weights never change.

    The loss is `w_guide * guide_loss + w_sparsity * sparsity_loss + w_distill * distillation_loss`, with z the router's
    scores, p = sigmoid(z) and s_i the schedule (formulas and sources in `ftp_core.losses`):

    - guide: mean over tokens of -[y log p + (1 - y) log(1 - p)], y the static router's decision; its weight decays;
    - sparsity: mean over blocks of max(0, s_i - mean_j(1 - p_ij))^2;
    - distillation: T^2 KL(dense || pruned) at temperature T, over the completion's tokens.

    Gradients reach the router through the gates of its hard decisions, straight through (`ftp_core.gated`).

    Args:
        model: The model.
        data: What to train on.
        schedules: Schedules the router shall serve; held-out KL is the mean over them.
        config: Hyperparameters.
        held_out: What to choose the best router on; must not share examples with `data`. By default an eighth of the
            data is set aside for it.
        router: What to train, from the weights that it has; by default a dynamic router with fresh ones.
        checkpoint: File that is written at each evaluation; if it is there already, training goes on where it stopped,
            to the same router as if it had not.
        on_step: Called with the step and the best held-out KL so far.
        on_taught: Called after each batch of the dense model's pass over `data`, which comes before the steps.

    Returns:
        The router with the lowest held-out KL; the static router's decisions, if none was lower.

    Raises:
        ScheduleError: A schedule has another number of blocks than the model.
        CoreError: No schedule skips anything, there is too little data, the checkpoint belongs to another run, or the
            loss is not finite (the error names the step and the file with its inputs).
    """
    config = config or DistillationConfig()
    for schedule in schedules:
        model.check(schedule)
    if not any(any(schedule) for schedule in schedules):
        raise CoreError("No schedule skips anything, so a router has nothing to decide: give one with sparsity.")
    if held_out is None:
        data, aside = _set_aside(data)
        held_out = QualitySet(model, aside)
    run = _Run(model, schedules, config, held_out, _fresh_router(config) if router is None else copy.deepcopy(router))
    teacher = _Teacher(model, config)
    # Batches of similar lengths, in an order shuffled anew every epoch; the teacher speaks once for each.
    lessons = []
    for examples in length_sorted_batches(data, config.batch_size):
        lessons.append(teacher.lesson(examples))
        on_taught()
    return run.train(teacher, lessons, checkpoint, _run_fingerprint(model, data, schedules, config), on_step)


def _fresh_router(config: DistillationConfig) -> DynamicRouter:
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return DynamicRouter(config.window)


def _set_aside(data: Sequence[EncodedExample]) -> tuple[list[EncodedExample], list[EncodedExample]]:
    """Cut an eighth off, by content, so that it is the same whatever the order."""
    distinct = sorted(set(data), key=lambda example: hashlib.sha256(repr(example).encode()).digest())
    n_aside = max(1, len(distinct) // 8)
    if len(distinct) < 2:
        raise CoreError(f"{len(distinct)} distinct examples are too few to train on some and to hold out others.")
    return distinct[n_aside:], distinct[:n_aside]


def _run_fingerprint(
    model: SkippingModel,
    data: Sequence[EncodedExample],
    schedules: Sequence[SparsitySchedule],
    config: DistillationConfig,
) -> str:
    facts = (model_identity(model.model), [hash_of(example) for example in data], list(map(repr, schedules)), config)
    return hash_of(facts)


def hash_of(value: object) -> str:
    """A hash of a value's printed form."""
    return hashlib.sha256(repr(value).encode()).hexdigest()


class _Run:
    """One training of one router."""

    def __init__(
        self,
        model: SkippingModel,
        schedules: Sequence[SparsitySchedule],
        config: DistillationConfig,
        held_out: QualitySet,
        router: ScoringRouter,
    ) -> None:
        self._model = model
        self._schedules = schedules
        self._config = config
        self._held_out = held_out
        router.trained_for = model_identity(model.model)
        router.set_thresholds(None, None)
        self._router = router.to(model.device).train().requires_grad_(True)
        self._optimizer = torch.optim.AdamW(router.parameters(), lr=config.lr, weight_decay=0.0)
        self._state = TrainingState(random.Random(config.seed), {name: [] for name in CURVES})
        self._best: ScoringRouter = copy.deepcopy(router)

    def train(
        self,
        teacher: _Teacher,
        lessons: Sequence[_Lesson],
        checkpoint: Path | None,
        fingerprint: str,
        on_step: Callable[[int, float], None],
    ) -> Distillation:
        """See `distill`."""
        config, state = self._config, self._state
        gated = GatedModel(self._model, self._router, config.symmetric_sparsity, config.gradient_checkpointing)
        if checkpoint is not None and checkpoint.exists():
            self._best.load_state_dict(state.load(checkpoint, fingerprint, self._router, self._optimizer))
        elif config.consider_static and isinstance(self._router, DynamicRouter) and self._router.features == FEATURES:
            # The router that decides as the static one runs along, so that none is kept that does worse than it there.
            static = DynamicRouter.static(config.window).to(self._model.device)
            static.trained_for = self._router.trained_for
            self._hold_out(static)
        before, started = state.seconds, time.monotonic()
        while state.step < config.steps and not self._is_out_of_patience():
            self._step(gated, teacher, lessons, checkpoint)
            state.seconds = before + time.monotonic() - started
            if state.step % config.evaluate_every == 0 or state.step == config.steps:
                self._hold_out(self._router)
                if checkpoint is not None:
                    state.save(checkpoint, fingerprint, self._router, self._optimizer, self._best)
            on_step(state.step, state.best_kl)
        router = self._best.eval().requires_grad_(False)
        n_parameters = sum(parameter.numel() for parameter in router.parameters())
        return Distillation(router, state.curves, state.seconds, state.tokens, peak_bytes(), n_parameters)

    def _is_out_of_patience(self) -> bool:
        held, patience = self._state.curves["held_out_kl"], self._config.patience
        return patience is not None and len(held) - 1 - held.index(min(held)) >= patience if held else False

    def _hold_out(self, candidate: ScoringRouter) -> None:
        candidate.eval()
        kls = [self._held_out.evaluate(schedule, candidate).kl for schedule in self._schedules]
        candidate.train()
        kl = sum(kls) / len(kls)
        self._state.add(held_out_step=self._state.step, held_out_kl=kl)
        if kl < self._state.best_kl:
            self._state.best_kl, self._best = kl, copy.deepcopy(candidate)

    def _step(self, gated: GatedModel, teacher: _Teacher, lessons: Sequence[_Lesson], checkpoint: Path | None) -> None:
        config, state = self._config, self._state
        progress = state.step / config.steps
        warm_up = min(1.0, (state.step + 1) / max(1, config.steps // 10))
        self._optimizer.param_groups[0]["lr"] = config.lr * warm_up * 0.5 * (1 + math.cos(math.pi * progress))
        w_guide = config.w_guide * max(0.0, 1 - progress / config.guide_share) if config.guide_share > 0 else 0.0
        self._optimizer.zero_grad(set_to_none=True)
        sums = dict.fromkeys(("loss", "guide", "sparsity", "distill"), 0.0)
        for turn in range(config.accumulate):
            lesson = lessons[state.next_lesson(len(lessons))]
            schedule = self._schedules[(state.step * config.accumulate + turn) % len(self._schedules)]
            with _precision(self._model.device, config.autocast):
                logits, guide, sparsity = gated.forward(lesson.batch, schedule)
                distilled = teacher.loss(logits, lesson)
            loss = w_guide * guide + config.w_sparsity * sparsity + config.w_distill * distilled
            if not bool(torch.isfinite(loss)):
                raise self._not_finite(float(loss.detach()), lesson, schedule, checkpoint)
            (loss / config.accumulate).backward()
            for name, part in zip(sums, (loss, guide, sparsity, distilled), strict=True):
                sums[name] += float(part.detach()) / config.accumulate
            state.tokens += lesson.batch.n_tokens
        nn.utils.clip_grad_norm_(self._router.parameters(), config.max_grad_norm)
        self._optimizer.step()
        state.add(step=state.step, **sums)
        state.step += 1

    def _not_finite(
        self, loss: float, lesson: _Lesson, schedule: SparsitySchedule, checkpoint: Path | None
    ) -> CoreError:
        folder = Path(tempfile.mkdtemp(prefix="ftp-distill-")) if checkpoint is None else checkpoint.parent
        path = folder / f"failed-step-{self._state.step}.safetensors"
        inputs = {
            "ids": lesson.batch.ids,
            "prompt_lengths": lesson.batch.prompt_lengths,
            "schedule": torch.tensor(list(schedule)),
            **{f"router.{name}": tensor for name, tensor in self._router.state_dict().items()},
        }
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in inputs.items()}, path)
        return CoreError(
            f"The router's loss is {loss} at step {self._state.step} under the schedule {schedule}: lower the learning "
            f"rate, or look at the inputs of that step in {path}."
        )


@contextmanager
def _precision(device: torch.device, autocast: bool) -> Iterator[None]:
    with torch.autocast("cuda", torch.bfloat16) if autocast and device.type == "cuda" else nullcontext():
        yield


def peak_bytes() -> int:
    """Most memory so far: of torch on a GPU, if one is used, else of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    # Linux counts in kibibytes, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
