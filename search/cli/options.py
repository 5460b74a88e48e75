"""Options of the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.proposers.catalogue import PROPOSERS

Storage = Annotated[str, typer.Option("--storage", metavar="URL", help="Database of studies.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Where reports go.", show_default="./ftp-out/NAME")
]
StudyName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the study.")]
Name = Annotated[str, typer.Option("--name", help="Name of the new study.")]
Model = Annotated[str, typer.Option("--model", help="'demo', a local directory, or a Hugging Face id.")]
Data = Annotated[str, typer.Option("--data", help="'demo', or a JSONL file (see README).")]
Trials = Annotated[int, typer.Option("--trials", metavar="N", help="Schedules to evaluate.")]
MoreTrials = Annotated[
    int | None,
    typer.Option("--trials", metavar="N", help="New total of schedules to evaluate.", show_default="as begun"),
]
Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", help="Ray workers.", show_default="number of cores")
]
Seed = Annotated[int, typer.Option("--seed", metavar="S", help="Of proposals, data splits and router training.")]
Target = Annotated[
    float | None,
    typer.Option("--target-sparsity", metavar="X", help="Overall sparsity to search at.", show_default="the knee"),
]
Cost = Annotated[
    str,
    typer.Option(
        "--cost",
        metavar="NAME",
        help="What is traded against KL: latency_ms (predicted), flops, or kv_bytes, of one prefill.",
    ),
]
RouterSteps = Annotated[int, typer.Option("--router-steps", metavar="N", help="Steps of the router's training.")]
TestItems = Annotated[int, typer.Option("--test-items", metavar="N", help="Items that reported figures rest on.")]
Sampler = Annotated[
    str,
    typer.Option(
        "--sampler",
        metavar="NAMES",
        help=f"Who proposes schedules: portfolio, or some of {', '.join(PROPOSERS)}, separated by commas.",
    ),
]
Seconds = Annotated[
    float | None,
    typer.Option("--seconds", metavar="S", help="Begin no more schedules after so long.", show_default="for ever"),
]
Plateau = Annotated[
    int | None,
    typer.Option(
        "--plateau", metavar="N", help="End after N schedules that added nothing to the front.", show_default="never"
    ),
]
MaxLatency = Annotated[
    float | None,
    typer.Option("--max-latency-ms", metavar="MS", help="Predicted latency that every schedule must keep."),
]
MinAccuracy = Annotated[
    float | None,
    typer.Option("--min-accuracy", metavar="X", help="Accuracy on the search set that a good schedule must have."),
]
DenseBlocks = Annotated[
    str, typer.Option("--dense-blocks", metavar="LIST", help="Blocks that skip nothing, such as 0,1,-1.")
]
Fidelities = Annotated[
    str,
    typer.Option(
        "--fidelities",
        metavar="LIST",
        help="Shares of the search set after which bad schedules are stopped, such as 0.25,1.",
    ),
]
Pruner = Annotated[
    str,
    typer.Option("--pruner", help="Who stops them: halving, or Optuna's asha, hyperband, median, percentile."),
]
WarmStart = Annotated[
    str | None,
    typer.Option("--warm-start", metavar="STUDY", help="Start from what a study of the same model and data found."),
]
TrialTimeout = Annotated[
    float | None,
    typer.Option("--trial-timeout", metavar="S", help="Kill an evaluation that takes longer.", show_default="never"),
]
GpuWorkers = Annotated[int, typer.Option("--gpu-workers", metavar="N", help="Ray workers on GPUs, beside the others.")]
GpuShare = Annotated[float, typer.Option("--gpu-share", metavar="X", help="Share of a GPU for each of these.")]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address", metavar="HOST:PORT", help="Ray cluster to work on.", show_default="one of this machine alone"
    ),
]
PrefixMb = Annotated[
    int | None,
    typer.Option(
        "--prefix-mb",
        metavar="N",
        help="MiB of each worker for results that other schedules share.",
        show_default="an eighth of the memory for all",
    ),
]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="The same trials whatever the workers, the timing, the interruptions.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete a study of this name first.")]
