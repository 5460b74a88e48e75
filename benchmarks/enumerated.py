"""Every schedule of a small space of the demo model with its figures, so that its true front is known.

The space has the demo model's blocks 1, 3, 5, 7, 9 and 11, each at four levels: 4,096 schedules. They are evaluated
once and kept in `benchmarks/tables`, with the fingerprints of what they were evaluated on.

python benchmarks/enumerated.py    # evaluates them anew: ten minutes on one core
"""

import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path

import moocore
import numpy as np
from rich.console import Console
from rich.progress import track

from ftp_core.cost import ShapeProfile
from ftp_core.text.encoding import encoded_fingerprint
from search.evaluators import Task
from search.evaluators.local import LocalEvaluator
from search.inputs.data import load_workload
from search.problem.objectives import Objectives
from search.problem.space import ScheduleSpace
from studies.pareto import non_dominated, reference_point

TABLE = Path(__file__).parent / "tables" / "demo_4096.json"
SPACE = ScheduleSpace(12, step=0.25, max_sparsity=0.75, dense_blocks=(0, 2, 4, 6, 8, 10))
N_ITEMS = 32
KEPT = (15, 29, 72, 116, 159, 202, 245, 274, 287, 288)
NO_MS = ((0.0,) * len(KEPT),)
# Fixed times of the demo model's prefills on one machine: the front shall not depend on the next one.
TIMES = ShapeProfile(
    batch=8,
    length=288,
    kept=KEPT,
    block_ms=((1.135, 1.432, 2.231, 3.19, 4.414, 5.449, 6.887, 7.205, 7.373, 7.635),),
    fixed_ms=0.788,
    iqr_ms=NO_MS,
    score_ms=0.0,
    listen_ms=NO_MS,
    held=(288,),
    decode_block_ms=((0.0,),),
    decode_fixed_ms=0.0,
).times()


def predict_ms(schedule):
    return TIMES.prefill_ms(schedule, [0] * len(schedule), "static")


@dataclass(frozen=True)
class Enumerated:
    """All schedules of `SPACE`.

    Attributes:
        metrics: KL and perplexity of each, by its levels.
        values: Objective values of each, by its levels.
        reference: A tenth of the front's range beyond its worst point: where hypervolume is measured from.
        volume: Hypervolume of the true front.
    """

    metrics: dict[tuple[int, ...], dict[str, float]]
    values: dict[tuple[int, ...], tuple[float, ...]]
    reference: tuple[float, ...]
    volume: float

    def share(self, found):
        """The hypervolume of some schedules as a share of the true front's."""
        return moocore.hypervolume([self.values[levels] for levels in found], ref=self.reference) / self.volume


def all_levels():
    """In the order in which neighbours share the longest beginnings."""
    free = SPACE.free_genes
    for choice in itertools.product(range(SPACE.top + 1), repeat=len(free)):
        levels = [0] * SPACE.n_blocks
        for block, level in zip(free, choice, strict=True):
            levels[block] = level
        yield tuple(levels)


def load():
    """The table, from its file."""
    kept = json.loads(TABLE.read_text())
    metrics = {
        levels: {"kl": kl, "perplexity": perplexity}
        for levels, kl, perplexity in zip(all_levels(), kept["kl"], kept["perplexity"], strict=True)
    }
    objectives = Objectives(predict_ms)
    values = {levels: objectives(SPACE.schedule(levels), figures)[0] for levels, figures in metrics.items()}
    points = np.array(list(values.values()))
    front = points[non_dominated(points)]
    reference = reference_point(front)
    return Enumerated(metrics, values, reference, moocore.hypervolume(front, ref=reference))


def main():
    console = Console(width=120)
    workload = load_workload("demo", "demo", 0, {"calibration": N_ITEMS, "validation": 1, "test": 1})
    examples = workload.splits["calibration"]
    evaluator = LocalEvaluator(workload.model.skipping, examples, prefix_bytes=2**30)
    began = time.monotonic()
    found = [
        evaluator.evaluate(Task(SPACE.schedule(levels)))
        for levels in track(list(all_levels()), "Evaluating all schedules", console=console)
    ]
    run, reused = sum(one.blocks_run for one in found), sum(one.blocks_reused for one in found)
    TABLE.parent.mkdir(exist_ok=True)
    kept = {
        "model": workload.model.fingerprint(),
        "search_set": encoded_fingerprint(examples),
        "kl": [float(f"{one.metrics['kl']:.6g}") for one in found],
        "perplexity": [float(f"{one.metrics['perplexity']:.6g}") for one in found],
    }
    TABLE.write_text(json.dumps(kept) + "\n")
    console.print(
        f"{len(found)} schedules in {time.monotonic() - began:.0f} s; {reused / (run + reused):.1%} of the block "
        f"computations were known. {TABLE.name} written."
    )


if __name__ == "__main__":
    main()
