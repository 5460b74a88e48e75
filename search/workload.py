"""The model with its data split three ways: what search, distillation and measurement work on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftp_core.data import Example, fingerprint, load_jsonl, split_examples
from ftp_core.demo.examples import demo_examples
from ftp_core.encoding import EncodedExample, encode
from ftp_core.errors import DataError
from ftp_core.models import DEMO, LoadedModel, load_model
from search.config import RunConfig

SPLITS = ("calibration", "validation", "test")
MAX_CONTINUATION = 64


@dataclass(frozen=True)
class Workload:
    """A loaded model and its encoded data.

    Attributes:
        model: The model.
        splits: Encoded examples of "calibration" (search and distillation), "validation" (choosing a router) and "test"
            (figures that are reported); disjoint by content.
        data_fingerprint: Hash over all of them.
        dropped: Examples left out because they do not fit into the model's context.
    """

    model: LoadedModel
    splits: Mapping[str, Sequence[EncodedExample]]
    data_fingerprint: str
    dropped: int


def read_examples(data: str, seed: int, sizes: Mapping[str, int]) -> dict[str, list[Example]]:
    """The examples of every split.

    Args:
        data: `demo` or the path of a JSONL file.
        seed: Of the demo's streams or of the split of a file.
        sizes: How many examples each split shall have.

    Raises:
        DataError: The file cannot be read, a line fits no known form, or there is too little of it.
    """
    if data == DEMO:
        return {
            "calibration": demo_examples("calibration", sizes["calibration"], seed),
            "validation": demo_examples("validation", sizes["validation"], seed),
            "test": demo_examples("test", sizes["test"], seed),
        }
    return split_examples(load_jsonl(Path(data)), seed, dict(sizes))


def load_workload(model: str, data: str, seed: int, sizes: Mapping[str, int]) -> Workload:
    """Load model and data.

    Raises:
        ModelError: The model cannot be loaded.
        DataError: The data cannot be read, or no example of a split fits into the model's context.
    """
    loaded = load_model(model)
    examples = read_examples(data, seed, sizes)
    encoded: dict[str, list[EncodedExample]] = {}
    dropped = 0
    for split in SPLITS:
        encoded[split] = []
        for example in examples[split]:
            try:
                encoded[split] += encode(loaded.tokenizer, [example], loaded.skipping.context, MAX_CONTINUATION)
            except DataError:
                dropped += 1
        if not encoded[split]:
            raise DataError(
                f"None of the {len(examples[split])} {split} examples fits into the model's context of "
                f"{loaded.skipping.context} tokens: give shorter prompts."
            )
    parts = "".join(fingerprint(examples[split]) for split in SPLITS)
    return Workload(loaded, encoded, hashlib.sha256(parts.encode()).hexdigest(), dropped)


def search_set(config: RunConfig, workload: Workload) -> list[EncodedExample]:
    """The examples that every schedule is evaluated on."""
    return list(workload.splits["calibration"][: config.search_items])
