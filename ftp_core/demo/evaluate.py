"""Held-out accuracy of the demo model by statement distance: `python -m ftp_core.demo.evaluate`.

Distances are filled evenly, because far ones are rare in the stream of stories: a mean over the stream would hide them.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import Progress
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ftp_core.demo import assets
from ftp_core.demo.examples import example_of
from ftp_core.demo.task import MAX_STATEMENTS, Split, stories
from ftp_core.routers import StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.data import Example
from ftp_core.text.encoding import IGNORED, EncodedExample, choice_batch, encode, length_sorted_batches, prompt_batch

_BATCH_SIZE = 32


@dataclass(frozen=True)
class Accuracy:
    """Shares of questions answered right."""

    choice: float  # share with the right one of four choices as the likeliest
    free_text: float  # share for which greedy decoding writes exactly the right answer
    n: int  # number of questions


def questions_by_distance(split: Split, seed: int, per_distance: int) -> dict[int, list[Example]]:
    """The first `per_distance` items of a split at every statement distance from 0 to 29."""
    found: dict[int, list[Example]] = {distance: [] for distance in range(MAX_STATEMENTS)}
    missing = per_distance * MAX_STATEMENTS
    for story in stories(split, seed):
        question = story.questions[0]
        if len(found[question.distance]) < per_distance:
            found[question.distance].append(example_of(story))
            missing -= 1
        if missing == 0:
            break
    return found


def accuracy_by_distance(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    seed: int,
    per_distance: int,
    on_distance: Callable[[], None] = lambda: None,
) -> dict[int, Accuracy]:
    """Accuracy of the dense model at every statement distance."""
    skipping, result = SkippingModel(model), {}
    for distance, examples in questions_by_distance(split, seed, per_distance).items():
        rights: dict[str, list[bool]] = defaultdict(list)
        for group in length_sorted_batches(encode(tokenizer, examples, skipping.context), _BATCH_SIZE):
            for kind, values in _right(skipping, group).items():
                rights[kind] += values
        n = len(rights["choice"])
        result[distance] = Accuracy(sum(rights["choice"]) / n, sum(rights["free_text"]) / n, n)
        on_distance()
    return result


def _right(model: SkippingModel, group: list[EncodedExample]) -> dict[str, list[bool]]:
    prefill = model.prefill(prompt_batch(group), SparsitySchedule.uniform(0.0, model.n_blocks), StaticRouter())
    choices = choice_batch(group)
    assert choices is not None
    log_probs_RCV = model.continuation_logits(prefill, choices).float().log_softmax(-1)
    real_RC, ids_RC = choices.ids != IGNORED, choices.ids.clamp(min=0)
    totals_R = (log_probs_RCV.gather(-1, ids_RC[..., None]).squeeze(-1) * real_RC).sum(-1)
    # Greedy decoding writes the answer exactly if each of its tokens is the likeliest after those before it.
    written_R = ((log_probs_RCV.argmax(-1) == ids_RC) | ~real_RC).all(-1)
    answers_B = torch.tensor([example.answer for example in group])
    return {
        "choice": (totals_R.view(len(group), -1).argmax(-1) == answers_B).tolist(),
        "free_text": written_R.view(len(group), -1).gather(1, answers_B[:, None]).squeeze(1).tolist(),
    }


def print_accuracy(by_distance: dict[int, Accuracy]) -> None:
    """Prints one line a distance, and the means over distances."""
    print("distance  n    four-way  free text")
    for distance, accuracy in by_distance.items():
        print(f"{distance:8d}  {accuracy.n:3d}  {accuracy.choice:8.1%}  {accuracy.free_text:9.1%}")
    rows = by_distance.values()
    choice, text = sum(a.choice for a in rows) / len(rows), sum(a.free_text for a in rows) / len(rows)
    print(f"{'mean':>8}       {choice:8.1%}  {text:9.1%}")
    print(f"{'lowest':>8}       {min(a.choice for a in rows):8.1%}  {min(a.free_text for a in rows):9.1%}")


def main() -> None:
    """Command line of `python -m ftp_core.demo.evaluate`."""
    parser = argparse.ArgumentParser(prog="python -m ftp_core.demo.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=assets(), help="directory of a trained demo model")
    parser.add_argument("--split", choices=("calibration", "validation", "test"), default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-distance", type=int, default=100, help="questions at each statement distance")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="sdpa")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    with Progress() as progress:
        bar = progress.add_task("distances", total=MAX_STATEMENTS)
        result = accuracy_by_distance(
            model, tokenizer, args.split, args.seed, args.per_distance, lambda: progress.advance(bar)
        )
    print_accuracy(result)


if __name__ == "__main__":
    main()
