"""Claim: on a GPU, skipped tokens make large models faster, by what the count of operations allows.

Llama-2-7B, Llama-3-8B and Qwen1.5-7B in bfloat16, of their published shapes and with random weights, as speed hangs on
no weight. Needs this file and ftp_core alone, torch 2.11 and transformers 5.17 or later, and a GPU of 40 GB. It takes
at most ten minutes: what tells most comes first, and what there is no time for is listed as not measured. Each line is
printed and written (--json) as soon as it is known.

First, what is timed is compared with what is slow but plainly right: packed rows with padded ones, and a schedule of
zeros with the dense model, to the bit. Where the two disagree, nothing is timed.

Of each variant: tokens/s and time to the first token of a prefill, peak memory beyond the weights, the speed-up over
the dense model and its share of the ideal, the ratio of operations. All variants of one model, batch and length take
turns. "static" and "dynamic" have a schedule of the kind that searches find: the outer two blocks at both ends skip
less. "dynamic" is a router with thresholds, which keeps different numbers of tokens in each row; its ideal is that of
what it kept. "block removal" leaves as many blocks out as come closest to the schedule's operations.

python benchmarks/gpu.py [--json PATH] [--seconds 600] [--models llama2-7b,llama3-8b,qwen1.5-7b] [--batches 1,4,16]
    [--lengths 512,1000,2000,8192] [--sparsities 0.22,0.3,0.4,0.5] [--repeats 5] [--device cuda] [--tiny]

--tiny runs models of the same families with two blocks of width 64 on a CPU: it shows that the script works, and no
speed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ftp_core.baselines.shortgpt import BlockRemoval, blocks_removed_at, flops_without_blocks
from ftp_core.cost.flops import FlopsCounter
from ftp_core.cost.measure import Skipping, Unchanged
from ftp_core.cost.timing import timer_of
from ftp_core.routers import DynamicRouter, StaticRouter
from ftp_core.schedule import MAX_SPARSITY, SparsitySchedule
from ftp_core.skipping.packing import ALWAYS, AUTO, NEVER, packs
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import PromptBatch
from ftp_core.training.calibration import calibrate_thresholds

# As their published config.json files have it: family, vocabulary, width, MLP, blocks, heads, key heads, context.
SHAPES = {
    "llama2-7b": ("llama", 32_000, 4096, 11_008, 32, 32, 32, 4096),
    "llama3-8b": ("llama", 128_256, 4096, 14_336, 32, 32, 8, 8192),
    "qwen1.5-7b": ("qwen2", 151_936, 4096, 11_008, 32, 32, 32, 32_768),
}
TINY = (512, 64, 96, 2, 4, 2, 256)
FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
)
DENSE, REMOVAL, STATIC, DYNAMIC = "dense", "block removal", "static", "dynamic"
# Batch and length of the paper's own points; the rest follows by the number of tokens.
FIRST = ((4, 2000), (1, 1000), (1, 2000))
# Largest difference of packed and padded hidden states, as a share of their size (bfloat16 has 8 bits), and largest
# share of a router's decisions that rounding may turn.
TOLERANCE, TURNED = 0.05, 0.05
# Seconds that the turns of a group shall take, of which there is one at least.
TURNS_SECONDS = 12.0
# Tokens that thresholds are calibrated on at most.
MOST_CALIBRATED = 8192


@dataclass(frozen=True)
class Group:
    """One model, batch and length: all that takes turns."""

    model: str
    batch: int
    length: int


class Output:
    """Prints rows and keeps them on disk as they come."""

    def __init__(self, path, facts):
        self._path = path
        self._found = {**facts, "checks": [], "rows": [], "not_measured": []}

    def add(self, kind, row, line):
        self._found[kind].append(row)
        print(line, flush=True)
        if self._path is not None:
            beside = self._path.with_name(self._path.name + ".part")
            beside.write_text(json.dumps(self._found, indent=1) + "\n")
            os.replace(beside, self._path)


def build(name, device, tiny):
    """A model of a shape with random weights, made on the device."""
    kind, *numbers = SHAPES[name]
    config = AutoConfig.for_model(kind, **dict(zip(FIELDS, TINY if tiny else numbers, strict=True)))
    torch.manual_seed(0)
    with torch.device(device):
        return SkippingModel(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval())


def searched(overall, n_blocks):
    """A schedule of the kind that searches find: the outer two blocks at both ends skip less, the mean is `overall`."""
    shares = [1.0] * n_blocks
    for depth, share in enumerate((0.25, 0.6)):
        if 2 * depth + 1 < n_blocks:
            shares[depth] = shares[-1 - depth] = share
    values = [overall * n_blocks / sum(shares) * share for share in shares]
    return SparsitySchedule([min(value, MAX_SPARSITY) for value in values])


def prompts_of(model, batch, length, seed, shortest=None):
    """Random tokens; the rows are of equal length, or down to `shortest` tokens long."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, model.model.config.vocab_size, (batch, length), generator=draw)
    lengths = torch.full((batch,), length)
    if shortest is not None:
        lengths = torch.linspace(shortest, length, batch).long()
    return PromptBatch(ids, lengths).to(model.device)


def thresholds(model, schedule, batch, length, router):
    with torch.no_grad():
        draw = torch.Generator().manual_seed(0)
        for weight in router.parameters():
            weight.normal_(generator=draw)
    router = router.requires_grad_(False).to(model.device)
    return calibrate_thresholds(model, router, prompts_of(model, batch, length, seed=1), schedule)


@torch.inference_mode()
def check(name, model, length, output):
    """Compares what is timed with the plain computation; returns True if they agree."""
    ids = prompts_of(model, 2, length, seed=3).ids
    zeros = SparsitySchedule.uniform(0.0, model.n_blocks)
    own = model.model(input_ids=ids, logits_to_keep=1).logits[:, -1]
    through, _ = Skipping("zeros", zeros, StaticRouter()).step_of(model.model)(ids, None)
    results = [("a schedule of zeros", 0.0 if torch.equal(own, through) else float("inf"), 0.0)]
    if model.device.type == "cpu" or packs(model.model, model.device, AUTO):
        results += packed_results(model, length)
    else:
        print(f"{name}: this GPU has no kernel for packed rows, so that they are padded", flush=True)
    for what, error, most in results:
        verdict = "agrees" if error <= most else "DISAGREES"
        row = {"model": name, "check": what, "error": error, "tolerance": most}
        output.add("checks", row, f"{name}: {what}: {verdict} ({error:.2g}, at most {most:g})")
    return all(error <= most for _, error, most in results)


def packed_results(model, length):
    """Differences of packed and padded rows, under routers whose decisions hang on rounding and on nothing rounded."""
    prompts = prompts_of(model, 4, length, seed=4, shortest=max(2, length // 3))
    schedule = searched(0.4, model.n_blocks)
    by_position = thresholds(model, schedule, 4, length, DynamicRouter(features=("position", "block_sparsity")))
    routers = {"static": StaticRouter(), "thresholds by position": by_position}
    routers["thresholds"] = thresholds(model, schedule, 4, length, DynamicRouter())
    results = []
    for what, router in routers.items():
        found = []
        for packing in (NEVER, ALWAYS):
            model.packing = packing
            found.append(model.prefill(prompts, schedule, router))
        padded, packed = found
        turned = [float((a != b).float().mean()) for a, b in zip(padded.kept, packed.kept, strict=True)]
        if what == "thresholds":
            # What is behind a decision that rounding has turned, is not comparable.
            results.append((f"packed rows, {what}, decisions", statistics.fmean(turned), TURNED))
            continue
        one, other = packed.last_hidden.float(), padded.last_hidden.float()
        difference = (one - other).norm() / other.norm()
        is_alike = not any(turned) and packed.cache.held() == padded.cache.held()
        results.append((f"packed rows, {what}", float(difference) if is_alike else float("inf"), TOLERANCE))
    model.packing = AUTO
    return results


@dataclass(frozen=True)
class Way:
    """A variant: a function that prefills once and returns its cache, and its count of operations, if that is known."""

    name: str
    sparsity: float
    run: Callable
    flops: float | None
    skipped: float | None


def ways_of(model, group, sparsities):
    counter, size = FlopsCounter(model), (group.batch, group.length)
    ids = prompts_of(model, *size, seed=0).ids
    zeros = SparsitySchedule.uniform(0.0, model.n_blocks)

    def way(name, sparsity, variant, flops, skipped):
        step = variant.step_of(model.model)
        return Way(name, sparsity, lambda: step(ids, None)[1], flops, skipped)

    ways = [way(DENSE, 0.0, Unchanged(DENSE), counter.count(zeros, *size).total, 0.0)]
    for sparsity in sparsities:
        schedule = searched(sparsity, model.n_blocks)
        n_removed = blocks_removed_at(model, schedule, *size)
        removal = BlockRemoval(tuple(range(1, 1 + n_removed)))
        flops = flops_without_blocks(model, n_removed, *size)
        ways.append(way(REMOVAL, sparsity, removal, flops, n_removed / model.n_blocks))
        static = Skipping(STATIC, schedule, StaticRouter())
        ways.append(way(STATIC, sparsity, static, counter.count(schedule, *size).total, schedule.overall))
        # On other prompts than those that are timed, as in life, and not too many of them.
        rows = min(group.batch, max(1, MOST_CALIBRATED // group.length))
        router = thresholds(model, schedule, rows, group.length, DynamicRouter())
        ways.append(way(DYNAMIC, sparsity, Skipping(DYNAMIC, schedule, router), None, None))
    return ways


def kept_by(cache, group):
    """Share of the tokens that skipped each block, as the cache tells it."""
    n_tokens = group.batch * group.length
    kept = [n_tokens if block.positions.numel() == 0 else int((block.positions >= 0).sum()) for block in cache.blocks]
    return SparsitySchedule([min(1 - count / n_tokens, MAX_SPARSITY) for count in kept])


@torch.inference_mode()
def rows_of(model, group, args, facts, spent):
    """Rows of all variants of a group, which take turns; `spent` gets the seconds of the first turn, which warms up."""
    ways, clock, on_gpu = ways_of(model, group, args.sparsities), timer_of(model.device), model.device.type == "cuda"
    peaks, times, counter, began = [], [[] for _ in ways], FlopsCounter(model), time.monotonic()
    for number, way in enumerate(ways):
        before = 0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(model.device)
            before = torch.cuda.memory_allocated(model.device)
        cache = way.run()
        peaks.append(torch.cuda.max_memory_allocated(model.device) - before if on_gpu else None)
        if way.flops is None:
            kept = kept_by(cache, group)
            flops = counter.count(kept, group.batch, group.length).total
            ways[number] = replace(way, flops=flops, skipped=kept.overall)
        del cache
    spent[group] = time.monotonic() - began
    for turn in range(turns(spent[group], args.repeats)):
        for number in range(len(ways))[:: -1 if turn % 2 else 1]:
            started = clock()
            ways[number].run()
            times[number].append(1000 * (clock() - started))
    rows, n_tokens = [], group.batch * group.length
    for way, samples, peak in zip(ways, times, peaks, strict=True):
        ms = statistics.median(samples)
        speedup = statistics.median(own / other for own, other in zip(times[0], samples, strict=True))
        ideal = ways[0].flops / way.flops
        rows.append(
            {
                **asdict(group),
                "sparsity": way.sparsity,
                "variant": way.name,
                "skipped": way.skipped,
                "ttft_ms": ms,
                "ttft_samples_ms": samples,
                "tokens_per_second": 1000 * n_tokens / ms,
                "peak_bytes": peak,
                "speedup": speedup,
                "ideal": ideal,
                "share_of_ideal": speedup / ideal,
                "tflops": way.flops / ms / 1e9,
                **facts,
            }
        )
    return rows


def turns(first_seconds, repeats):
    """Turns of a group whose first one took so long."""
    return max(1, min(repeats, round(TURNS_SECONDS / max(first_seconds, 1e-9))))


def line_of(row):
    peak = "" if row["peak_bytes"] is None else f", peak {row['peak_bytes'] / 2**30:.2f} GiB"
    return (
        f"{row['model']} {row['batch']} x {row['length']}, {row['variant']} {row['sparsity']:.0%}: "
        f"{row['tokens_per_second']:,.0f} tokens/s, first token {row['ttft_ms']:.1f} ms{peak}, "
        f"{row['speedup']:.2f}x of {row['ideal']:.2f}x ({row['share_of_ideal']:.0%})"
    )


def parts_of(args):
    """Groups of each model: first what tells most of all models, then the rest."""
    grid = [(batch, length) for length in args.lengths for batch in args.batches]
    first = [one for one in FIRST if one in grid]
    rest = sorted((one for one in grid if one not in first), key=lambda one: one[0] * one[1])
    # A model is made twice, rather than that the last one waits for all of the others.
    return [(name, [Group(name, *one) for one in part]) for part in (first, rest) if part for name in args.models]


def parsed():
    def list_of(kind):
        return lambda text: [kind(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write everything here too, as it comes")
    parser.add_argument("--seconds", type=float, default=600.0, help="most seconds of the whole script")
    parser.add_argument("--models", type=list_of(str), default=list(SHAPES))
    parser.add_argument("--batches", type=list_of(int), default=[1, 4, 16])
    parser.add_argument("--lengths", type=list_of(int), default=[512, 1000, 2000, 8192])
    parser.add_argument("--sparsities", type=list_of(float), default=[0.22, 0.3, 0.4, 0.5])
    parser.add_argument("--repeats", type=int, default=5, help="most turns of each group")
    parser.add_argument("--device", help="default: cuda; with --tiny cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to see that the script works")
    args = parser.parse_args()
    if unknown := [name for name in args.models if name not in SHAPES]:
        parser.error(f"there is no {', '.join(unknown)}: choose of {','.join(SHAPES)}")
    args.device = args.device or ("cpu" if args.tiny else "cuda")
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        parser.exit(1, "not measured: torch finds no GPU here (--tiny shows on a CPU that the script works)\n")
    return args


def facts_of(device):
    on_gpu = torch.device(device).type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "dtype": "bfloat16",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def main():
    args, began = parsed(), time.monotonic()
    facts = facts_of(args.device)
    output, is_right, spent = Output(args.json, facts), {}, {}
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)

    def why_not(group):
        """Why a group is not measured, as far as that is known beforehand."""
        if not is_right.get(group.model, True):
            return "what would be timed is not right"
        # Of this model or another one: they are of one size.
        per_token = max((s / (g.batch * g.length) for g, s in list(spent.items())[-3:]), default=0.0)
        first = per_token * group.batch * group.length
        left = args.seconds - (time.monotonic() - began)
        return "no time left" if left <= first * (2 + turns(first, args.repeats)) or left <= 0 else None

    def leave_out(group, why):
        row = {**asdict(group), "why": why}
        output.add("not_measured", row, f"{group.model} {group.batch} x {group.length}: not measured ({why})")

    for name, groups in parts_of(args):
        model = None
        for group in groups:
            why = why_not(group)
            try:
                if why is None and model is None:
                    model = build(name, args.device, args.tiny)
                    if name not in is_right:
                        is_right[name] = check(name, model, 64 if args.tiny else 300, output)
                        why = why_not(group)
                if why is None and group.length > model.context:
                    why = f"the model reads {model.context} tokens"
                if why is None:
                    for row in rows_of(model, group, args, facts, spent):
                        output.add("rows", row, line_of(row))
            except torch.OutOfMemoryError:
                why = "out of memory"
                torch.cuda.empty_cache()
            if why is not None:
                leave_out(group, why)
        # Its memory, before the next one is made.
        model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    print(f"{time.monotonic() - began:.0f} s", flush=True)
    return 0 if all(is_right.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
