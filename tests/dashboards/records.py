"""A study as a whole pipeline leaves it, made up: searched, tuned, distilled, refined twice, selected, tested."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from dashboards import ReportData
from studies import Measurement, RouterRun, StudyRecord, StudyState, Trial, TrialState
from studies.records.generation_speed import GenerationSpeed
from studies.records.records import Disagreement, GroupAccuracy, ReportExamples, RoutedPrompt, StageRecord
from studies.records.study_facts import Round, SelectionRecord, StudyFacts, TimedInput, TunedTrial, Tuning
from studies.records.trial import WorkSpan

N_BLOCKS = 12
BEGAN = datetime(2026, 1, 1, 9, 30, tzinfo=UTC)
STAGES = {
    **{"search": 63.0, "tune": 41.5, "distill-1": 12.2, "refine-1": 48.0, "distill-2": 12.6, "refine-2": 47.1},
    **{"measure": 20.4, "select": 0.01, "test": 33.3, "time": 12.1, "export": 0.8, "report": 1.4},
}
PROMPTS = (
    "Tom has the red ball. Ann has the blue cup. Joe has the green hat. Sue has the old map. Tom gives the red ball to "
    "Joe. What does Joe have?",
    "The key is in the box. The box is in the shed.\nThe lamp is on the desk. <b>Where</b> is the key?",
)


def trials() -> list[Trial]:
    """A first search of 120 trials and two refinements of 40, the later ones with a better router."""
    chance = random.Random(0)
    made = []
    for number in range(200):
        late = 0 if number < 120 else 1 if number < 160 else 2
        level = 0.0 if number == 0 else chance.uniform(0.02, 0.8 if late == 0 else 0.6)
        blocks = [chance.uniform(0.3, 1.7) * level * (0.3 if i in (0, 1, 11) else 1.2) for i in range(N_BLOCKS)]
        schedule = tuple(round(min(0.95, share) * 20) / 20 for share in blocks)
        overall = sum(schedule) / N_BLOCKS
        kl = 3.0 * overall**2.6 * chance.uniform(1.0, 3.0) * (1.0, 0.7, 0.68)[late]
        made.append(
            Trial(
                number=number,
                schedule=schedule,
                values=(kl, 40.0 * (1 - 0.85 * overall) + 1.5 + chance.uniform(0, 1)),
                state=TrialState.FINISHED,
                fidelity=1.0,
                proposer="initial design" if number < 6 else chance.choice(["deap", "tpe", "evopress", "cmaes"]),
                seconds=0.4,
                finished_at=BEGAN + timedelta(seconds=number),
                round=late,
                router=(None, 0, 1)[late],
                work=(WorkSpan(str(number % 4), BEGAN + timedelta(seconds=number - 0.4), 0.4),),
            )
        )
    made[7] = replace(made[7], values=None, state=TrialState.FAILED, error="A worker ran out of memory <here>.")
    return made


TRIALS = trials()


def best_at(overall: float, late: int) -> Trial:
    """The made-up trial of a round closest to an overall sparsity."""
    own = [t for t in TRIALS if t.values is not None and t.round == late]
    return min(own, key=lambda t: (abs(t.overall_sparsity - overall), t.values))


STATIC, REFINED = best_at(0.3, 0), best_at(0.3, 1)
SELECTION = SelectionRecord(
    trial=REFINED.number,
    router=0,
    rule="target_sparsity",
    reason="Of 8 candidates at the target of 30.0% overall sparsity it has the lowest KL on the validation items.",
    retention=0.992,
)


def measurement(
    variant: str,
    trial: Trial | None,
    kl: float,
    right: int,
    ms: float,
    router: int | None = None,
    split: str = "test",
    schedule: tuple[float, ...] | None = None,
) -> Measurement:
    """A measurement of 200 items with choices, with intervals as wide as such have."""
    n = 200
    faster = 1.0 if variant == "dense" else (41.0 if split == "validation" else 40.8) / ms
    schedule = schedule or (trial.schedule if trial else (0.0,) * N_BLOCKS)
    overall, share, extra = sum(schedule) / N_BLOCKS, right / n, 1.96**2 / n
    centre = (share + extra / 2) / (1 + extra)
    half = 1.96 * math.sqrt(share * (1 - share) / n + extra / (4 * n)) / (1 + extra)
    return Measurement(
        variant=variant,
        trial=None if trial is None else trial.number,
        schedule=schedule,
        kl=kl,
        perplexity=1.21 + kl,
        accuracy=share,
        accuracy_low=centre - half,
        accuracy_high=centre + half,
        n_items=n,
        latency_ms=ms,
        latency_low_ms=0.98 * ms,
        latency_high_ms=1.03 * ms,
        repeats=9,
        batch=8,
        length=256,
        flops=4.1e9 * (1 - 0.93 * overall),
        n_choice_items=n,
        kv_bytes=round(2**21 * (1 - overall)),
        split=split,
        router=router,
        kl_low=0.75 * kl,
        kl_high=1.3 * kl,
        perplexity_low=1.15 + kl,
        perplexity_high=1.27 + kl,
        peak_bytes=round(2**23 * (1 - 0.4 * overall)),
        speedup=faster,
        speedup_low=0.985 * faster,
        speedup_high=1.02 * faster,
    )


def measurements() -> list[Measurement]:
    """What was measured: candidates on validation items, and every row on test items."""
    candidates = [t for t in TRIALS if t.round == 2 and t.number % 6 == 0 and t.values is not None]
    made = [
        measurement("dense", None, 0.0, 196, 41.0, split="validation"),
        measurement("candidate", REFINED, 0.0173, 195, 31.5, router=0, split="validation"),
        measurement("dense", None, 0.0, 195, 40.8),
        measurement("uniform", None, 0.21, 170, 31.0, schedule=(0.3,) * N_BLOCKS),
        measurement("static", STATIC, 0.065, 188, 31.2),
        measurement("dynamic", STATIC, 0.041, 190, 32.1, router=0),
        measurement("refined", REFINED, 0.024, 193, 31.9, router=0),
        measurement("candidate", REFINED, 0.024, 193, 31.8, router=0),
    ]
    for t in candidates:
        kl = t.values[0] if t.values else 0.0
        right = max(60, round(195 - 90 * kl))
        made.append(measurement("candidate", t, kl, right, 40 - 30 * t.overall_sparsity, router=1))
    return made


def router_run(number: int, stage: str, held_out: list[float]) -> RouterRun:
    """A router with training curves."""
    steps = list(range(80))
    return RouterRun(
        trial=STATIC.number,
        schedule=STATIC.schedule,
        config={"lr": 0.01, "window": 32, "stage": stage, "schedules": 4, "static_kl": held_out[0]},
        curves={
            "step": [float(step) for step in steps],
            "loss": [0.3 * math.exp(-step / 30) + 0.05 for step in steps],
            "guide": [0.0 for _ in steps],
            "sparsity": [0.001 * math.exp(-step / 10) for step in steps],
            "distill": [0.29 * math.exp(-step / 30) + 0.05 for step in steps],
            "held_out_step": [float(step) for step in range(0, 10 * len(held_out), 10)],
            "held_out_kl": held_out,
        },
        sha256=f"{number}" * 64,
        seconds=11.8,
        created_at=BEGAN,
        number=number,
    )


def routed(prompt: str, seed: int, expected: str, dense: str, pruned: str) -> RoutedPrompt:
    """A prompt of which the first token and the last ones run most blocks."""
    chance = random.Random(seed)
    words = [word if place == 0 else f" {word}" for place, word in enumerate(prompt.split(" "))]
    counts = [chance.randint(5, 12) for _ in words]
    counts[0] = counts[-1] = N_BLOCKS
    return RoutedPrompt(tuple(words), tuple(counts), N_BLOCKS, expected, dense, pruned)


EXAMPLES = ReportExamples(
    prompts=(
        routed(PROMPTS[0], 1, " the red ball", " the red ball", " the red ball"),
        routed(PROMPTS[1], 2, " the shed", " the shed", " the desk"),
    ),
    groups=tuple(
        GroupAccuracy(
            group=f"{distance} statements back",
            n_items=40,
            accuracy={
                "dense": 0.98,
                "uniform": 0.95 - 0.04 * distance,
                "static": 0.97 - 0.02 * distance,
                "dynamic": 0.97 - 0.015 * distance,
                "refined": 0.98 - 0.01 * distance,
            },
            interval={
                "dense": (0.87, 0.996),
                "uniform": (0.8 - 0.04 * distance, 0.99 - 0.02 * distance),
                "static": (0.85 - 0.02 * distance, 0.995 - 0.01 * distance),
                "dynamic": (0.85 - 0.02 * distance, 0.995 - 0.01 * distance),
                "refined": (0.86 - 0.01 * distance, 0.996 - 0.005 * distance),
            },
        )
        for distance in range(5)
    ),
    disagreements=tuple(
        Disagreement(PROMPTS[place % 2], " the shed", " the shed", " the desk", 1.9 - 0.4 * place, f"{place} back")
        for place in range(4)
    ),
    n_disagreements=5,
    n_lost=3,
    n_won=1,
    n_items=200,
)


def speeds() -> list[GenerationSpeed]:
    """What generation took behind prompts of two lengths: the more new tokens, the less is gained."""
    made = []
    for length, new_tokens in ((256, 1), (256, 16), (256, 64), (512, 1), (512, 64)):
        decoding = 2.5 * (new_tokens - 1)
        for variant, prefill in (("dense", 0.16), ("uniform", 0.12), ("refined", 0.125)):
            ms, dense_ms = prefill * length + decoding, 0.16 * length + decoding
            ends = (
                (None, None, None)
                if variant == "dense"
                else (dense_ms / ms, 0.97 * dense_ms / ms, 1.04 * dense_ms / ms)
            )
            trial, router = (REFINED.number, 0) if variant == "refined" else (None, None)
            made.append(
                GenerationSpeed(variant, trial, router, 8, length, new_tokens, ms, 0.98 * ms, 1.02 * ms, 6, *ends)
            )
    return made


ROUNDS = (
    Round(1, 0, 0, first_trial=120, trials=40, hypervolume_before=61.2, hypervolume_after=66.9, growth=0.093),
    Round(2, 1, 1, first_trial=160, trials=40, hypervolume_before=66.9, hypervolume_after=67.2, growth=0.0045),
)
TUNING = Tuning(
    trials=(
        TunedTrial({"lr": 0.01, "w_guide": 0.0, "temperature": 1.0}, 0.044, 80, 12.0),
        TunedTrial({"lr": 0.03, "w_guide": 1.0, "temperature": 2.0}, 0.091, 20, 4.0),
        TunedTrial({"lr": 0.004, "w_guide": 0.1, "temperature": 1.0}, 0.038, 80, 12.0),
    ),
    best={"lr": 0.004, "w_guide": 0.1, "temperature": 1.0},
    seconds=41.5,
)
STUDY = StudyRecord(
    name="made up",
    state=StudyState.FINISHED,
    created_at=BEGAN,
    config={"model": "demo", "data": "demo", "seed": 0, "target_sparsity": 0.3, "min_retention": None},
    objectives=("kl", "latency_ms"),
    facts=StudyFacts(
        n_blocks=N_BLOCKS,
        timed_input=TimedInput(8, 256),
        selection=SELECTION,
        rounds=ROUNDS,
        tuning=TUNING,
        generation_speeds=tuple(speeds()),
        split_sizes={"calibration": 256, "validation": 128, "test": 200},
        left_out={"whose prompt is in another split, too": 7, "longer than the model's context": 2},
        shared_boundaries=3,
        peak_process_bytes=1_400_000_000,
    ),
    chosen_trial=REFINED.number,
)


def stages() -> list[StageRecord]:
    """The stages, one after another."""
    made, now = [], BEGAN
    for name, seconds in STAGES.items():
        ended = now + timedelta(seconds=seconds)
        made.append(StageRecord(name, StudyState.FINISHED, now, ended))
        now = ended
    return made


DATA = ReportData(
    study=STUDY,
    trials=TRIALS,
    measurements=measurements(),
    router_runs=[
        router_run(0, "distill-1", [0.062, 0.055, 0.048, 0.046, 0.044]),
        router_run(1, "distill-2", [0.031, 0.028, 0.024, 0.023, 0.025]),
    ],
    examples=EXAMPLES,
    stages=stages(),
)


def with_facts(data: ReportData, **facts: Any) -> ReportData:
    """A report's data with some facts of the study replaced."""
    return replace(data, study=replace(data.study, facts=data.study.facts.updated(StudyFacts(**facts))))
