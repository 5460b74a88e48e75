"""Examples of answers for the OpenAPI document: one study, as each operation tells of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BEGAN, _ENDED = "2026-01-02T09:30:00Z", "2026-01-02T09:41:12.500000Z"
_SCHEDULE = [0.0, 0.0, 0.1, 0.2, 0.3, 0.3, 0.4, 0.4, 0.45, 0.45, 0.5, 0.5]
_OBJECTIVES = ["kl", "flops"]
_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_REASON = "Of 8 candidates at the target of 30.0% FLOPs saved it has the lowest KL on the validation items."
_SETTINGS = {"model": "demo", "data": "demo", "trials": 500, "seed": 0, "cost": "flops", "target_flops_saved": 0.3}
_LINE = {
    **{"name": "mine", "state": "finished", "created_at": _BEGAN, "model": "demo", "data": "demo", "n_trials": 500},
    **{"tags": ["paper"], "note": "more trials do not help", "sweep": None},
}
_STAGE = {"name": "search", "state": "finished", "began_at": _BEGAN, "ended_at": _ENDED, "seconds": 672.5}
_RUN = {"submitted_at": _BEGAN, "submitted_by": "ada", "runner": None, "host": None, "pid": None, "error": None}
_STUDY = {
    **_LINE,
    **{"objectives": _OBJECTIVES, "config": _SETTINGS, "chosen_trial": 154},
    "facts": {"n_blocks": 12, "split_sizes": {"calibration": 256, "validation": 128, "test": 200}},
    **{"stages": [_STAGE], "run": _RUN},
}
_QUEUED = {**_STUDY, "state": "queued"}
_NEW = {**_QUEUED, "n_trials": 0, "chosen_trial": None, "facts": {}, "stages": []}
_RUNNER = "1b4e28ba-2fa1-41d2-883f-0016d3cca427"
_RUNNING_STAGE = {**_STAGE, "state": "running", "ended_at": None, "seconds": None}
_STOPPING = {
    **_STUDY,
    **{"state": "stopping", "n_trials": 120, "chosen_trial": None},
    "stages": [_RUNNING_STAGE],
    "run": {**_RUN, "runner": _RUNNER, "host": "gpu-box", "pid": 4711},
}
_TRIAL = {
    **{"number": 154, "state": "finished", "schedule": _SCHEDULE, "overall_sparsity": 0.3, "values": [0.024, 3.1e9]},
    **{"fidelity": 1.0, "proposer": "deap", "parents": [87, 101], "worker": "0"},
    "work": [{"worker": "0", "began_at": _BEGAN, "seconds": 1.2}],
    **{"round": 0, "router": None, "seconds": 1.2, "finished_at": "2026-01-02T09:34:05Z"},
    **{"metrics": {"accuracy": 0.965, "kv_bytes": 1.2e6}, "constraint_violation": 0.0, "error": None},
}
_MEASUREMENT = {
    **{"variant": "static", "split": "test", "trial": 154, "router": None, "schedule": _SCHEDULE},
    **{"overall_sparsity": 0.3, "kl": 0.024, "kl_low": 0.019, "kl_high": 0.03},
    **{"perplexity": 4.12, "perplexity_low": 3.98, "perplexity_high": 4.27},
    **{"accuracy": 0.965, "accuracy_low": 0.93, "accuracy_high": 0.983, "n_items": 200, "n_choice_items": 200},
    **{"latency_ms": 31.9, "latency_low_ms": 31.5, "latency_high_ms": 32.4},
    **{"speedup": 1.28, "speedup_low": 1.26, "speedup_high": 1.3, "repeats": 20, "batch": 8, "length": 256},
    **{"flops": 3.1e9, "kv_bytes": 1_200_000, "peak_bytes": None},
}

# An answer by the name of its schema.
ANSWERS: Mapping[str, Any] = {
    "Health": {"status": "ok"},
    "Identity": {"name": "ada", "role": "editor", "csrf": None},
    "StudyList": {"items": [_LINE], "total": 1},
    "StudyAnswer": _STUDY,
    "StagesAnswer": {
        "state": "running",
        "items": [_RUNNING_STAGE],
        "progress": {
            **{"foreseen": ["search", "distill-1", "measure", "select", "test", "time", "export", "report"]},
            **{"stage": "search", "began_at": _BEGAN, "step": 120, "steps": 500, "unit": "trials", "left_s": 512.0},
            **{"line": "120 of 500 trials, front of 9", "ahead": None, "has_runner": True},
        },
    },
    "TrialPage": {"items": [_TRIAL], "next": 154},
    "TrialAnswer": _TRIAL,
    "ScheduleAnswer": {"trial": 154, "schedule": _SCHEDULE, "overall_sparsity": 0.3, "router": None},
    "Front": {"objectives": _OBJECTIVES, "items": [_TRIAL]},
    "VolumeHistory": {
        "reference": [1.0, 4.4e9],
        "items": [{"trial": 154, "finished_at": _TRIAL["finished_at"], "value": 2.9e9}],
    },
    "Measurements": {"items": [_MEASUREMENT]},
    "ComparisonAnswer": {
        "items": [
            {
                **{"method": "shortgpt", "paper": "ShortGPT (arXiv 2403.03853)", "match": "latency", "target": 0.25},
                **{"seed": 0, "refused": "", "kl_to_ours": "worse", "accuracy_to_ours": "not told apart"},
                "model": {
                    **{
                        "asked": 0.27,
                        "flops_saved": 0.25,
                        "flops": 3.3e9,
                        "kv_bytes": 900_000,
                        "n_parameters": 1_800_000,
                    },
                    **{"sparsity": "0.25 of the blocks removed", "kl": 0.11, "kl_low": 0.09, "kl_high": 0.13},
                    **{"perplexity": 4.6, "accuracy": 0.95, "accuracy_low": 0.91, "accuracy_high": 0.97},
                    **{"latency_ms": 31.2, "speedup": 1.33, "speedup_low": 1.3, "speedup_high": 1.36},
                    **{"tokens_per_second": 210.0, "batch": 8, "length": 256, "seconds": 6.4, "tokens": 10252},
                    "trained_parameters": 0,
                },
            }
        ]
    },
    "SelectionAnswer": {
        **{"trial": 154, "router": None, "rule": "target_flops_saved", "reason": _REASON, "retention": 0.99},
        **{"cost": "flops", "latency": None},
    },
    "Routers": {
        "items": [
            {
                **{"number": 0, "trial": 154, "schedule": _SCHEDULE},
                "config": {"stage": "distill-1", "kind": "dynamic", "static_kl": 0.026},
                "curves": {"step": [0.0, 50.0], "held_out_step": [0.0, 50.0], "held_out_kl": [0.027, 0.022]},
                **{"sha256": _SHA256, "seconds": 48.5, "created_at": _ENDED, "beats_static": True},
            }
        ]
    },
    "Log": {"items": [{"number": 7, "at": _BEGAN, "text": "120 of 500 trials, front of 9"}], "next": 7},
    "Files": {"items": [{"name": "report.html", "bytes": 5_241_880}, {"name": "report.json", "bytes": 48_210}]},
    "RunnerList": {
        "items": [
            {
                **{"id": _RUNNER, "host": "gpu-box", "pid": 4711, "began_at": _BEGAN, "silent_s": 0.8},
                **{"is_alive": True, "study": "mine"},
            }
        ]
    },
    "ScheduleFile": {
        **{"schedule": _SCHEDULE, "overall_sparsity": 0.3, "keep_first": 0},
        **{"objectives": {"kl": 0.024, "flops": 3.1e9}, "costs": {"kv_bytes": 1.2e6}},
        **{"study": "mine", "study_created_at": _BEGAN, "trial": 154, "model": "demo", "revision": None},
        **{"adapter": None, "model_fingerprint": _SHA256, "router": None, "settings": _SETTINGS},
    },
    "PromptAnswer": {
        **{"study": "mine", "trial": 154, "overall_sparsity": 0.3, "router": "static", "n_tokens": 6, "n_blocks": 12},
        **{"tokens": ["Tom", " has", " the", " red", " ball", "."], "blocks_run": [12.0, 2.0, 2.0, 6.0, 12.0, 12.0]},
        **{"dense": "Tom has it.", "pruned": "Tom has it.", "flops_saved": 0.31},
    },
}
# Answers of single operations, by method and path, which tell of another moment.
OF_OPERATIONS: Mapping[tuple[str, str], Any] = {
    ("post", "/api/v1/session"): {"name": "ada", "role": "editor", "csrf": "Zk3v7Qw0mB5n"},
    ("post", "/api/v1/studies"): _NEW,
    ("post", "/api/v1/studies/{name}/stop"): _STOPPING,
    ("post", "/api/v1/studies/{name}/resume"): _QUEUED,
    ("post", "/api/v1/studies/{name}/comparison"): _QUEUED,
    ("post", "/api/v1/studies/{name}/points/{number}/measure"): _QUEUED,
    ("post", "/api/v1/studies/{name}/points/{number}/select"): _QUEUED,
}
