"""The command `prompt`: one's own prompt under the schedule of a trial."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from dashboards.report.prompts import ShadedToken, as_text, legend, own_prompt, said, shaded_prompts
from search.cli.options import AsJson, Storage, StudyName
from search.config.run_config import DEFAULT_STORAGE
from search.errors import ConfigError
from search.stages.origin import trial_to_use
from search.startup import ends_at_once
from studies import StudyStore
from studies.records.records import ReportExamples

if TYPE_CHECKING:
    from search.stages.own_prompt import OwnPrompt

# Settings that `prompt` takes: of places that have changed, and where to compute.
PROMPT_SETTINGS = ("model", "revision", "adapter", "device")
DEFAULT_NEW_TOKENS = 32
# Backgrounds of the least and of the most shaded tokens, below black letters.
_PALEST, _DEEPEST = (240, 246, 251), (97, 168, 207)


def prompt_command(
    name: StudyName,
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="The prompt; - reads it from standard input.", show_default=False)
    ],
    settings: Mapping[str, Any],
    trial: Annotated[
        int | None, typer.Option("--trial", metavar="N", help="Trial to ask; the selected one if not given.  [x>=0]")
    ] = None,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", metavar="K", min=1, help="Most tokens of an answer.")
    ] = DEFAULT_NEW_TOKENS,
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """Show which tokens of a prompt skip blocks under a trial's schedule, and the dense and the pruned model's answers.

    The stronger a token is shaded, the more blocks it runs; where there are no colors, the number stands before it.
    Answers are greedy.

    Example: ftp-search prompt mine "Tom has the red ball. Who has the ball?"
    Example: ftp-search prompt mine --trial 57 --new-tokens 100 - < prompt.txt
    """
    with StudyStore(storage, create=False) as store:
        found = trial_to_use(store, name, trial)
        asked = _readable(sys.stdin.buffer.read() if text == "-" else text)
        console = Console(stderr=True)
        with console.status("loading libraries"), ends_at_once():
            from search.stages.own_prompt import run_prompt
        with console.status("running the prompt"):
            shown = run_prompt(store, name, found, asked, new_tokens, settings)
    if as_json:
        print(json.dumps(asdict(shown)))
    else:
        print_prompt(Console(markup=False, highlight=False), shown)


def print_prompt(console: Console, shown: OwnPrompt) -> None:
    """Prints a prompt with its tokens shaded by the blocks that they run, and the answers of both models."""
    routed = own_prompt(asdict(shown))
    about = f"overall sparsity {shown.overall_sparsity:.1%}, {shown.router} router"
    console.print(f"study {shown.study}, trial {shown.trial}: {about}", soft_wrap=True)
    if console.color_system is None:
        console.print(as_text(routed), soft_wrap=True)
    else:
        examples = ReportExamples(prompts=(routed,))
        (shaded,) = shaded_prompts(examples)
        console.print(_shaded(shaded.tokens), soft_wrap=True)
        console.print(Text("blocks run: ").append_text(_shaded(legend(examples), between=" ")), soft_wrap=True)
    console.print(said(routed), soft_wrap=True)
    console.print(f"{shown.flops_saved:.1%} of the prompt's FLOPs are saved.")
    for model, answer in (("dense", routed.dense), ("pruned", routed.pruned)):
        console.print(f"{model}: {answer}", soft_wrap=True)


def _shaded(tokens: tuple[ShadedToken, ...] | list[ShadedToken], between: str = "") -> Text:
    pieces: list[tuple[str, Style] | str] = []
    for token in tokens:
        shade = (round(low + token.shade * (high - low)) for low, high in zip(_PALEST, _DEEPEST, strict=True))
        pieces += [(token.text, Style(color="black", bgcolor=Color.from_rgb(*shade))), between]
    return Text.assemble(*pieces)


def _readable(given: str | bytes) -> str:
    """A prompt that has some text in it."""
    try:
        # What is no UTF-8 on a command line has become lone surrogates, which cannot be encoded.
        text = given.decode() if isinstance(given, bytes) else given.encode().decode()
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ConfigError(f"TEXT is not written in UTF-8 ({error.reason}): convert it first.") from error
    if not text.strip():
        raise ConfigError("TEXT is empty: give a prompt, or - to read it from standard input.")
    return text
