"""The command `profile`: measures the latency of blocks by the number of tokens that they keep."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ftp_core.loading.model_source import locate
from ftp_core.loading.reference import ModelReference
from search.cli.options import Adapter, AsJson, DeviceMap, Model, Revision, Storage
from search.cli.settings import is_given
from search.cli.tables import narrow_table
from search.config.groups import DEFAULT_PROFILE_SECONDS
from search.config.run_config import DEFAULT_STORAGE, SETTINGS, RunConfig
from search.config.setting import option
from search.config.study_name import resume_command
from search.errors import ConfigError
from search.startup import ends_at_once
from studies import StudyStore
from studies.records.study_facts import TimedInput
from studies.sql.location import database_file

if TYPE_CHECKING:
    from ftp_core.cost.profile import LatencyProfile
    from ftp_core.cost.shape_profile import ShapeProfile
    from ftp_core.skipping.skipping_model import SkippingModel
    from search.inputs.latency_profiles import Profiled
    from search.progress.progress_view import ProgressView

_OF_THE_MODEL = ("model", "revision", "adapter")
_OF_THE_MACHINE = ("dtype", "device", "device_map", "threads")


_SKIPPED = {
    "attention": "attention",
    "attention_kept": "attention but for keys and values",
    "mlp": "MLP",
    "both_kept": "both but for keys and values",
}


def profile_command(
    context: typer.Context,
    study: Annotated[
        str | None,
        typer.Option("--study", metavar="NAME", help="Measure with the model and the timed input of this study."),
    ] = None,
    model: Model = "demo",
    revision: Revision = None,
    adapter: Adapter = None,
    batch: Annotated[str, typer.Option("--batch", metavar="LIST", help="Rows of the inputs, such as 1,8.")] = "1,8",
    length: Annotated[
        str, typer.Option("--length", metavar="LIST", help="Tokens in each row, such as 512,1024,2048.")
    ] = "512",
    dtype: Annotated[str, typer.Option("--dtype", help=SETTINGS["dtype"].description)] = "auto",
    device: Annotated[str, typer.Option("--device", help=SETTINGS["device"].description)] = "auto",
    device_map: DeviceMap = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", help="Threads of torch.  [x>=1]", show_default="as torch chooses"),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--profile-seconds", metavar="S", help="Most seconds for each batch and length.  [x>0]")
    ] = DEFAULT_PROFILE_SECONDS,
    remeasure: Annotated[
        bool, typer.Option("--remeasure", help="Measure again even where a profile is known.")
    ] = False,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="PATH",
            help="Measure nothing; keep a profile that --json printed on another such machine.",
        ),
    ] = None,
    as_json: AsJson = False,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Measure the latency of blocks on this machine, from which searches predict the latency of schedules.

    Example: ftp-search profile --model ./my-llama --batch 1,8 --length 512,1024,2048
    """
    reference = ModelReference(model, revision, adapter)
    config: RunConfig | None = None
    if study is not None:
        _check_alone(context)
        config, shape = _of_study(storage, study)
        reference, device, dtype, device_map = config.reference, config.device, config.dtype, config.device_map
        batch, length = str(shape.batch), str(shape.length)
        seconds = seconds if is_given(context, "seconds") else config.profile_seconds
    batches, lengths = _numbers("--batch", batch), _numbers("--length", length)
    RunConfig.checked(dtype=dtype, device=device, device_map=device_map, revision=revision, adapter=adapter)
    if threads is not None and threads < 1:
        raise ConfigError(f"--threads is {threads}: expected at least 1.")
    if not 0 < seconds < math.inf:
        raise ConfigError(f"--profile-seconds is {seconds:g}: expected a number above 0.")
    # Refuses a wrong URL before a model is loaded.
    database_file(storage)
    given = None if source is None else _read(source)

    locate(reference)
    with ends_at_once():
        # They load torch and transformers.
        from ftp_core.cost.profile import LatencyProfile
        from search.inputs.latency_profiles import Profiled, keep_profile, profile_of, say_doubts
        from search.inputs.substitutes import substitute_for_costs
        from search.progress.progress_view import ProgressView

    view = ProgressView(Console(stderr=True, markup=False))
    skipping = _load(reference, dtype, device, device_map, threads, view)
    if config is not None:
        substitute_for_costs(config, skipping)
    if given is not None:
        there = LatencyProfile.from_json(given)
        there.check(skipping)
        with StudyStore(storage) as store:
            shown = repr(store)
            found = Profiled(LatencyProfile.joined(keep_profile(store, there, replace=True)))
    else:
        if max(lengths) > skipping.context:
            raise ConfigError(
                f"--length is {max(lengths)}, but the model {str(reference)!r} reads {skipping.context} tokens at "
                "once: give no more than that."
            )
        shapes = [(rows, tokens) for rows in batches for tokens in lengths]
        with StudyStore(storage) as store:
            shown = repr(store)
            found = profile_of(store, skipping, shapes, view, "all" if remeasure else "none", seconds)
    say_doubts(found.profile, view, _again(context, found.profile, shown))
    console = Console(markup=False, highlight=False)
    if as_json:
        print(json.dumps(found.profile.to_json()))
    else:
        _print(console, found)
        if study is not None:
            renewed = resume_command(shown, study, "--remeasure")
            console.print(f"study {study!r} keeps the profile that it has until: {renewed}", soft_wrap=True)


def _check_alone(context: typer.Context) -> None:
    """Raises `ConfigError` if options are given that contradict --study."""
    for parameter in (*_OF_THE_MODEL, *_OF_THE_MACHINE, "batch", "length", "source"):
        if is_given(context, parameter):
            named = "--from" if parameter == "source" else option(parameter)
            raise ConfigError(
                f"--study and {named} are both given: a study is profiled as it runs; leave one of them out."
            )


def _of_study(storage: str, name: str) -> tuple[RunConfig, TimedInput]:
    """Configuration and timed input of a study."""
    with StudyStore(storage, create=False) as store:
        study = store.studies.get(name)
    shape = study.facts.timed_input
    if shape is None:
        raise ConfigError(
            f"--study is {name!r}, which has not begun, so that its timed input is not known: it is profiled as it "
            "begins."
        )
    return RunConfig.stored(study.config), shape


def _again(context: typer.Context, profile: LatencyProfile, storage: str) -> str:
    """The shell command that measures a profile again; `storage` is shown without a password."""
    given = context.params
    words = ["ftp-search", "profile"]
    if given["study"] is not None:
        words += ["--study", given["study"]]
    else:
        for parameter in _OF_THE_MODEL:
            words += [] if given[parameter] is None else [option(parameter), given[parameter]]
        for axis in ("batch", "length"):
            words += [f"--{axis}", ",".join(map(str, sorted({getattr(shape, axis) for shape in profile.shapes})))]
    for parameter in _OF_THE_MACHINE:
        if is_given(context, parameter):
            words += [option(parameter), str(given[parameter])]
    return shlex.join([*words, "--remeasure", *([] if storage == DEFAULT_STORAGE else ["--storage", storage])])


def _numbers(option: str, text: str) -> list[int]:
    """Positive whole numbers from text such as `1,8`."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"{option} is {text!r}: expected whole numbers from 1 on with commas, such as 1,8.")
    return sorted(set(numbers))


def _read(source: Path) -> dict[str, object]:
    try:
        values = json.loads(source.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--from is {str(source)!r}, which cannot be read as JSON: {error}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--from is {str(source)!r}, which is no latency profile: expected what --json printed.")
    return values


def _load(
    model: ModelReference, dtype: str, device: str, device_map: str | None, threads: int | None, view: ProgressView
) -> SkippingModel:
    import torch

    from ftp_core.loading.models import load_model

    if threads is not None:
        torch.set_num_threads(threads)
    with view.stage(f"Loading {model}", 1) as stage:
        loaded = load_model(model, device, dtype, device_map)
        stage.advance()
    view.tell([loaded.placement])
    return loaded.skipping


def _print(console: Console, found: Profiled) -> None:
    profile, conditions = found.profile, found.profile.conditions
    where = conditions.cpu if conditions.gpu == "none" else conditions.gpu
    console.print(f"{where}, {conditions.threads} threads, {conditions.dtype}, {conditions.kernel}")
    known = {(batch, length): when for batch, length, when in found.known}
    for shape in profile.shapes:
        unsteady = "; ~ kept varying" if shape.unsteady else ""
        console.print(f"\n{shape.batch} x {shape.length} tokens, mean of {len(profile.blocks)} blocks{unsteady}")
        console.print(_table(profile, shape))
        if (when := known.get((shape.batch, shape.length))) is not None:
            console.print(f"already measured on {when}; --remeasure measures again", soft_wrap=True)
        for line in _remarks(profile, shape):
            console.print(line, soft_wrap=True)


def _table(profile: LatencyProfile, shape: ShapeProfile) -> Table:
    table = narrow_table(None, "kept", "share", "block ms", "IQR", "speed-up")
    whole = _mean(shape.block_ms, profile.blocks, -1)
    for point, count in enumerate(shape.kept):
        ms = _mean(shape.block_ms, profile.blocks, point)
        table.add_row(
            str(count),
            f"{count / shape.length:.0%}",
            f"{ms:.3f}{'~' if ('prefill', count) in shape.unsteady else ' '}",
            f"{_mean(shape.iqr_ms, profile.blocks, point) / ms:.1%}",
            f"{whole / ms:.2f}x",
        )
    return table


def _mean(rows: tuple[tuple[float, ...], ...], blocks: tuple[int, ...], point: int) -> float:
    """Mean over all blocks of a row for each kind of block."""
    return sum(rows[kind][point] for kind in blocks) / len(blocks)


def _remarks(profile: LatencyProfile, shape: ShapeProfile) -> list[str]:
    from ftp_core.schedule import SparsitySchedule

    dense = SparsitySchedule.uniform(0.0, len(profile.blocks))
    prefill_ms = profile.predict_ms(dense, batch=shape.batch, length=shape.length)
    decode_ms = profile.decode_ms(dense, batch=shape.batch, length=shape.length)
    listening_ms = _mean(shape.listen_ms, profile.blocks, -2 if len(shape.kept) > 1 else -1)
    remarks, one_pass = [], []
    if shape.choice_ms is not None and shape.once_ms is not None:
        one_pass = [
            f"a one-pass router adds {shape.once_ms:.3f} ms, and {shape.choice_ms:.3f} ms for each block that skips"
        ]
    if shape.halves is not None and shape.halves.kept:
        # The largest share of tokens that was measured.
        share = 1 - shape.halves.kept[0] / shape.length
        dense_block_ms = _mean(shape.block_ms, profile.blocks, -1)
        saved = ", ".join(
            f"{words} {1 - _mean(getattr(shape.halves, name), profile.blocks, 0) / dense_block_ms:.0%}"
            for name, words in _SKIPPED.items()
        )
        remarks = [f"{share:.0%} of the tokens skipping one half save of a block's time: {saved}"]
    return [
        *remarks,
        f"dense: a prefill {prefill_ms:.1f} ms, of which {shape.fixed_ms:.1f} outside the blocks; a decoded token "
        f"{decode_ms:.1f} ms",
        f"a dynamic router adds {shape.score_ms:.3f} ms for each block that skips, and up to {listening_ms:.3f} ms for "
        "listening in the block before it",
        *one_pass,
        f"predictions for other schedules were off by {shape.check_error:.1%}; with 95 % confidence by no more than "
        f"{shape.uncertainty:.1%}",
    ]
