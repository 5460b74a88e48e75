"""The model with its data split three ways: what search, distillation and measurement work on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ftp_core.data import Example, fingerprint, load_jsonl, split_examples
from ftp_core.demo.examples import demo_examples
from ftp_core.encoding import EncodedExample, encode
from ftp_core.errors import DataError
from ftp_core.models import DEMO, LoadedModel, load_model
from search.config import RunConfig

SPLITS = ("calibration", "validation", "test")
# Tokens of a completion that are looked at.
MAX_CONTINUATION = 64
_One = TypeVar("_One", Example, EncodedExample)


@dataclass(frozen=True)
class Workload:
    """A loaded model and its encoded data.

    Attributes:
        model: The model.
        splits: Encoded examples of "calibration" (search and distillation), "validation" (choosing a router and a point
            of the front) and "test" (figures that are reported); no prompt is in two of them.
        data_fingerprint: Hash over all of them.
        dropped: Examples left out because they do not fit into the model's context.
        leaked: Examples left out because their prompt is in another split, too.

    Raises:
        DataError: A prompt is in two splits: figures on held-out data would say nothing.
    """

    model: LoadedModel
    splits: Mapping[str, Sequence[EncodedExample]]
    data_fingerprint: str
    dropped: int
    leaked: int = 0

    def __post_init__(self) -> None:
        """Check that nothing that a split is held out for is in it, whoever made the splits."""
        home: dict[bytes, str] = {}
        for split, examples in self.splits.items():
            for number, example in enumerate(examples, 1):
                other = home.setdefault(_encoded_prompt(example), split)
                if other != split:
                    raise DataError(
                        f"The prompt of {split} example {number} is among the {other} examples, too, but splits must "
                        "share no prompt: leave it out of one of them."
                    )

    @property
    def long_completions(self) -> int:
        """Examples whose completion reaches `MAX_CONTINUATION` tokens: what may follow of it counts nowhere."""
        examples = (example for split in self.splits.values() for example in split if not example.has_choices)
        return sum(len(example.continuations[0]) >= MAX_CONTINUATION for example in examples)

    @property
    def split_sizes(self) -> dict[str, int]:
        """Examples in each split."""
        return {split: len(examples) for split, examples in self.splits.items()}


def read_examples(data: str, seed: int, sizes: Mapping[str, int]) -> dict[str, list[Example]]:
    """The examples of every split, as they come: prompts that are in several splits included.

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
    """Load model and data, and leave out examples that would let held-out data leak.

    A prompt that is in several splits, though it may go on differently there, stays in the test set before it stays in
    the validation set, and there before it stays in the calibration set. The same goes for prompts that differ as text,
    but not as tokens.

    Raises:
        ModelError: The model cannot be loaded.
        DataError: The data cannot be read, or no example of a split is left: they do not fit into the model's context,
            or have prompts of other splits.
    """
    loaded = load_model(model)
    examples, leaked = _without_leaks(read_examples(data, seed, sizes), _prompt)
    encoded: dict[str, list[EncodedExample]] = {}
    dropped = 0
    for split in SPLITS:
        encoded[split] = []
        for example in examples[split]:
            try:
                encoded[split] += encode(loaded.tokenizer, [example], loaded.skipping.context, MAX_CONTINUATION)
            except DataError:
                dropped += 1
        if examples[split] and not encoded[split]:
            raise DataError(
                f"None of the {len(examples[split])} {split} examples fits into the model's context of "
                f"{loaded.skipping.context} tokens: give shorter prompts."
            )
    splits, leaked_as_tokens = _without_leaks(encoded, _encoded_prompt)
    for split in SPLITS:
        if not splits[split]:
            raise DataError(
                f"No {split} example is left, as the prompt of each is in another split, too: give data with more "
                "distinct prompts."
            )
    parts = "".join(fingerprint(examples[split]) for split in SPLITS)
    name = hashlib.sha256(parts.encode()).hexdigest()
    return Workload(loaded, splits, name, dropped, leaked + leaked_as_tokens)


def search_set(config: RunConfig, workload: Workload) -> list[EncodedExample]:
    """The examples that every schedule is evaluated on: the first ones of the calibration set."""
    return list(workload.splits["calibration"][: config.search_items])


def _without_leaks(
    splits: Mapping[str, Sequence[_One]], prompt_of: Callable[[_One], bytes]
) -> tuple[dict[str, list[_One]], int]:
    """Splits without examples whose prompt is in a split that is held out more strictly, and how many those are."""
    left: dict[str, list[_One]] = {}
    taken: set[bytes] = set()
    leaked = 0
    # The strictest first: what it has, the others must not.
    for split in reversed(SPLITS):
        left[split] = [one for one in splits[split] if prompt_of(one) not in taken]
        leaked += len(splits[split]) - len(left[split])
        taken.update(map(prompt_of, left[split]))
    return {split: left[split] for split in SPLITS}, leaked


def _prompt(example: Example) -> bytes:
    """Hash of a prompt, whatever white space is around it."""
    return hashlib.sha256(example.prompt.strip().encode()).digest()


def _encoded_prompt(example: EncodedExample) -> bytes:
    """Hash of a prompt as the model reads it."""
    return hashlib.sha256(repr(example.prompt).encode()).digest()
