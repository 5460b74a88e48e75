"""Compares other methods with a study's own schedules: at equal time or operations, on its test items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ftp_core.baselines.protocol import Baseline, Budget, PrunedModel, flops_saved
from ftp_core.baselines.sharing import shared_copy
from ftp_core.cost import Unchanged, paired_speedup, profile_conditions, time_generation
from ftp_core.cost.measure import room_for_new_tokens
from ftp_core.cost.speedup import needs_more_turns
from ftp_core.cost.timing import timing_batch
from ftp_core.errors import CoreError
from ftp_core.quality.quality import Quality, QualitySet
from ftp_core.schedule import FEWEST_KEPT
from ftp_core.skipping.fitted_keys import fitted_keys_of
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.skipping.substitutes import substitutes_of
from ftp_core.text.encoding import PromptBatch, encoded_fingerprint
from search.comparison.matching import Matched, matched_in_time
from search.comparison.methods import method_of
from search.comparison.ours import OwnSchedules
from search.comparison.plan import ComparisonPlan
from search.errors import ConfigError, SearchError
from search.stages.measure import quality_set, timed_prompts
from search.stages.open_study import OpenStudy
from search.stages.stage_states import COMPARE
from studies.records.compared import OURS, Compared, ComparedModel, ShapeSpeed

# New tokens that are timed behind the first one, where the context has room for them.
_NEW_TOKENS = 16
# Turns by which a model's time is judged while a match is looked for: the medians of fewer are not steady.
_TURNS_TO_MATCH = 5
# Least turns at other shapes: fewer have no interval, and long prefills take long.
_TURNS_OF_SHAPES = 6


def compare(study: OpenStudy, plan: ComparisonPlan) -> list[Compared]:
    """Makes, measures and keeps what is missing of a plan; what the database has is not done again.

    Every row is kept as soon as it is measured. A method that cannot be applied to the model is a row that says why.

    Returns:
        All rows of the plan, the study's own first.

    Raises:
        ConfigError: The model does not read as many tokens as a prefill is to have.
    """
    comparing = _Comparing(study, plan)
    names = dict.fromkeys((OURS, *plan.methods))
    methods: list[Baseline] = [OwnSchedules(study) if name == OURS else method_of(name) for name in names]
    planned = [
        (method, target, plan.seeds if method.has_chance else 1) for target in plan.targets for method in methods
    ]
    n_rows, n_done = sum(seeds for _, _, seeds in planned), 0
    found: list[Compared] = []
    for method, target, seeds in planned:
        study.view.figures(COMPARE, n_done, {"rows": n_rows})
        found += comparing.rows(method, target, seeds)
        n_done += seeds
    study.view.figures(COMPARE, n_done, {"rows": n_rows})
    return found


class _Timed(NamedTuple):
    """Times of a model."""

    first: ShapeSpeed  # until the first token
    tokens_per_second: float | None  # behind it; None if none were timed


class _Comparing:
    """One study's model, items and clock, for all methods alike."""

    def __init__(self, study: OpenStudy, plan: ComparisonPlan) -> None:
        self._study = study
        self._match, self._shapes = plan.match, plan.shapes
        self._model = _without_maps(study.workload.model.skipping)
        _check_shapes(plan.shapes, self._model.context)
        self._prompts = timed_prompts(study)
        self._context = _context(study, self._model, self._prompts)
        self._known = {
            (one.method, one.match, one.target, one.seed, one.context): one
            for one in study.store.comparisons.of(study.name)
        }
        self._items: QualitySet | None = None

    def rows(self, method: Baseline, target: float, seeds: int) -> list[Compared]:
        """What a method comes to at a target with each seed, from the database as far as it is known there."""
        found: list[Compared] = []
        for seed in range(seeds):
            one = self._known.get((method.name, self._match, target, seed, self._context_of(method)))
            if one is None or self._untimed(one.model):
                self._study.lease.check()
                # Other seeds save the same operations, so that they differ by chance alone.
                asked = next((row.model.asked for row in found if row.model is not None), None)
                one = self._compared(method, target, seed, asked, None if one is None else one.model)
                self._study.store.comparisons.keep(self._study.name, one)
            found.append(one)
            if one.refused:
                break
        return found

    def _untimed(self, known: ComparedModel | None) -> list[tuple[int, int]]:
        """Shapes of the plan at which a known model was not timed; none of one that cannot be made."""
        timed = {(one.batch, one.length) for one in known.shapes} if known is not None else set(self._shapes)
        return [shape for shape in self._shapes if shape not in timed]

    def _compared(
        self, method: Baseline, target: float, seed: int, asked: float | None, known: ComparedModel | None
    ) -> Compared:
        """Makes a method's model and measures it; of a known one, which is made again, what is not measured yet."""
        asked = asked if known is None else known.asked
        title = f"{method.name} at {target:.0%} less {'time' if self._match == 'latency' else 'operations'}"
        with self._study.view.stage(title if not seed else f"{title}, seed {seed}", 100) as stage:
            done = 0

            def advance(share: float) -> None:
                nonlocal done
                now = round(100 * min(1.0, share))
                if now > done:
                    stage.advance(now - done)
                    done = now

            def make(share: float) -> PrunedModel:
                nonlocal done
                if done == 100:
                    stage.extend(100)
                    done = 0
                batch, length = self._prompts.ids.shape
                budget = Budget(share, batch, length)
                made = method.fit(self._model, self._study.workload.splits["calibration"], budget, seed, advance)
                advance(1.0)
                return made

            refused, model = "", None
            try:
                if asked is not None or self._match == "flops":
                    share = target if asked is None else asked
                    matched: Matched[PrunedModel] = Matched(share, make(share))
                else:
                    matched = matched_in_time(make, self._saved_time, target)
            except (CoreError, SearchError) as error:
                refused = str(error)
            else:
                model = self._measured(matched) if known is None else known
                if shapes := self._untimed(model):
                    model = replace(model, shapes=(*model.shapes, *self._timed_shapes(matched.model, shapes)))
        return Compared(method.name, method.paper, self._match, target, seed, self._context_of(method), model, refused)

    def _context_of(self, method: Baseline) -> str:
        """Hash of what a method's rows depend on beside their target and seed.

        Of ours, trials are part of it, and what stands in for skipped halves.
        """
        if method.name != OURS:
            return self._context
        study = self._study
        own = [self._context, study.store.trials.n_ended(study.name), study.workload.model.skipping_fingerprint()]
        return hashlib.sha256(json.dumps(own).encode()).hexdigest()

    def _saved_time(self, pruned: PrunedModel) -> float:
        dense, own = time_generation(
            self._model, self._prompts.ids, [Unchanged(), pruned], [1], repeats=_TURNS_TO_MATCH
        )
        return 1.0 - 1.0 / paired_speedup(dense[1], own[1]).ratio

    def _measured(self, matched: Matched[PrunedModel]) -> ComparedModel:
        pruned, prompts = matched.model, self._prompts
        batch, length = prompts.ids.shape
        quality = self._quality(pruned)
        assert quality.kl_interval is not None
        low, high = quality.accuracy_interval or (None, None)
        timed = self._timed(pruned, prompts, self._study.config.timed_runs, _NEW_TOKENS)
        return ComparedModel(
            asked=matched.share,
            flops_saved=flops_saved(pruned, batch, length),
            flops=pruned.flops(batch, length),
            kv_bytes=pruned.kv_bytes(batch, length),
            n_parameters=pruned.n_parameters,
            sparsity=str(pruned.sparsity),
            kl=quality.kl,
            kl_low=quality.kl_interval[0],
            kl_high=quality.kl_interval[1],
            perplexity=quality.perplexity,
            accuracy=quality.accuracy,
            accuracy_low=low,
            accuracy_high=high,
            latency_ms=timed.first.latency_ms,
            speedup=timed.first.speedup,
            speedup_low=timed.first.speedup_low,
            speedup_high=timed.first.speedup_high,
            tokens_per_second=timed.tokens_per_second,
            repeats=timed.first.repeats,
            batch=batch,
            length=length,
            seconds=pruned.preparation.seconds,
            tokens=pruned.preparation.tokens,
            trained_parameters=pruned.preparation.trained_parameters,
            preparation_bytes=pruned.preparation.peak_bytes,
            item_kl=tuple(one.kl for one in quality.items),
            item_tokens=tuple(one.n_tokens for one in quality.items),
            item_right=tuple(None if one.right is None else int(one.right) for one in quality.items),
        )

    def _quality(self, pruned: PrunedModel) -> Quality:
        if self._items is None:
            self._items = quality_set(self._study, "test", self._model)
        with self._study.view.stage(f"Measuring quality, {pruned.name}", self._items.n_batches) as stage:
            return self._items.evaluate_pruned(pruned, choices=True, intervals=True, on_batch=stage.advance, items=True)

    def _timed_shapes(self, pruned: PrunedModel, shapes: Sequence[tuple[int, int]]) -> list[ShapeSpeed]:
        least = min(self._study.config.timed_runs, _TURNS_OF_SHAPES)
        prompts = [example.prompt for example in self._study.workload.splits["calibration"]]
        return [self._timed(pruned, timing_batch(prompts, *shape), least, 0).first for shape in shapes]

    def _timed(self, pruned: PrunedModel, prompts: PromptBatch, least: int, new_tokens: int) -> _Timed:
        """Times of a prefill and of the tokens behind it, in turns with the dense model."""
        batch, length = prompts.ids.shape
        new = min(new_tokens, room_for_new_tokens(length, self._model.context) - 1)
        title = f"Measuring latency at {batch} x {length}, {pruned.name}"
        with self._study.view.stage(title, 2 * (least + 1)) as stage:

            def goes_on(times_ms: Sequence[Sequence[float]]) -> bool:
                more = needs_more_turns(times_ms, least)
                if more:
                    stage.extend(2 * least)
                return more

            dense, own = time_generation(
                self._model,
                prompts.ids,
                [Unchanged(), pruned],
                [1, 1 + new] if new > 0 else [1],
                repeats=least,
                on_run=stage.advance,
                goes_on=goes_on,
            )
        ratio, rate = paired_speedup(dense[1], own[1]), None
        if new > 0:
            behind_ms = np.asarray(own[1 + new]) - np.asarray(own[1])
            rate = float(1000 * new * batch / np.median(behind_ms))
        latency_ms = float(np.median(own[1]))
        return _Timed(
            ShapeSpeed(batch, length, latency_ms, ratio.ratio, ratio.low, ratio.high, len(own[1])),
            tokens_per_second=rate,
        )


def _without_maps(model: SkippingModel) -> SkippingModel:
    """The dense model as others know it: what stands in for skipped halves, and fitted keys, are the study's own."""
    given = substitutes_of(model.model), fitted_keys_of(model.model)
    return model if given == (None, None) else shared_copy(model)


def _check_shapes(shapes: Sequence[tuple[int, int]], context: int) -> None:
    for batch, length in shapes:
        if length > context:
            raise ConfigError(
                f"--shapes has {batch}x{length}, but the model reads at most {context} tokens: give a shorter one."
            )


def _context(study: OpenStudy, model: SkippingModel, prompts: PromptBatch) -> str:
    """Hash of what every row depends on beside its method, target and seed: times of two machines do not compare."""
    parts = [
        profile_conditions(model).fingerprint(*prompts.ids.shape),
        model.keep_first,
        FEWEST_KEPT,
        *(encoded_fingerprint(study.workload.examples(split)) for split in ("test", "calibration")),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
