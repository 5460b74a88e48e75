"""The model with its data split three ways: what search, distillation and measurement work on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TypeVar

from ftp_core.errors import DataError
from ftp_core.loading.models import LoadedModel, load_model
from ftp_core.loading.reference import ModelName
from ftp_core.sources.progress import Begin, unseen
from ftp_core.sources.source import AS_THEY_ARE, Form, parse_sources
from ftp_core.text.data import Example, fingerprint
from ftp_core.text.encoding import EncodedExample, ExampleError, LeftOut, encode
from search.config.groups import KeepFirst
from search.config.run_config import RunConfig
from search.inputs.examples import ReadSource, read_examples
from search.inputs.protection import n_protected_tokens, unprotected_beginning

SPLITS = ("calibration", "validation", "test")
# Tokens of a completion that are looked at.
MAX_CONTINUATION = 64
# Why examples are left out whatever the model is; `ftp_core.text.encoding.LeftOut` has the reasons that lie in it.
REPEATED = "that repeat another one"
LEAKED = "whose prompt is in another split, too"
_ELSEWHERE = "test: "
_One = TypeVar("_One", Example, EncodedExample)


def elsewhere_name(source: str) -> str:
    """The name of other data in facts and measurements, where splits have theirs."""
    return _ELSEWHERE + source


@dataclass(frozen=True)
class Workload:
    """A loaded model and its encoded data.

    Attributes:
        model: The model.
        splits: Encoded examples of "calibration" (search and distillation), "validation" (choosing a router and a point
            of the front) and "test" (figures that are reported); no prompt is in two of them.
        data_fingerprint: Hash over all of them.
        left_out: Number of examples that were left out, by the reason.
        asked: Examples that each split was to have; empty where nobody said.
        sources: Sources of the examples.
        elsewhere: Encoded examples of other data that results are tested on, too, by the names of `elsewhere_name`.
        tested_sources: Sources of these.

    Raises:
        DataError: A prompt is in two splits: figures on held-out data would say nothing.
    """

    model: LoadedModel
    splits: Mapping[str, Sequence[EncodedExample]]
    data_fingerprint: str
    left_out: Mapping[str, int] = field(default_factory=dict)
    asked: Mapping[str, int] = field(default_factory=dict)
    sources: Sequence[ReadSource] = ()
    elsewhere: Mapping[str, Sequence[EncodedExample]] = field(default_factory=dict)
    tested_sources: Sequence[ReadSource] = ()

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
    def shared_boundaries(self) -> int:
        """Examples whose prompt's last token reaches into what follows, where it counts."""
        return sum(example.n_shared > 0 for split in self.splits.values() for example in split)

    def examples(self, split: str) -> Sequence[EncodedExample]:
        """Examples of a split, or of other data by its name."""
        return self.splits[split] if split in self.splits else self.elsewhere[split]

    @property
    def chance(self) -> dict[str, float]:
        """Accuracy of guessing on each split: the mean over multiple-choice items of 1 by the number of choices.

        Splits without such items are missing.
        """
        found = {}
        for split, examples in {**self.splits, **self.elsewhere}.items():
            shares = [1 / len(example.continuations) for example in examples if example.has_choices]
            if shares:
                found[split] = fmean(shares)
        return found

    @property
    def unprotected_beginning(self) -> str | None:
        """A warning that most prompts begin alike, and that this is not protected; None if there is nothing to say."""
        examples = [example for split in self.splits.values() for example in split]
        return unprotected_beginning(self.model.tokenizer, examples, self.model.skipping.keep_first)

    @property
    def split_sizes(self) -> dict[str, int]:
        """Examples in each split."""
        return {split: len(examples) for split, examples in self.splits.items()}

    def fewer_than_asked(self, search_items: int) -> str:
        """A sentence on splits, or a search set, that are smaller than they were to be, and why; empty if none is."""
        n_search, n_calibration = min(search_items, self.split_sizes["calibration"]), self.asked.get("calibration", 0)
        got = {**self.split_sizes, "search": n_search}
        fewer = {name: n for name, n in {**self.asked, "search": search_items}.items() if got[name] < n}
        if not fewer:
            return ""
        reasons, n_left_out = [], sum(n for reason, n in self.left_out.items() if reason != REPEATED)
        n_distinct = sum(self.split_sizes.values()) + n_left_out
        if n_distinct < sum(self.asked.values()):
            reasons.append(f"the data has {n_distinct} distinct examples, which the splits share in proportion")
        if n_left_out:
            reasons.append(f"{n_left_out} of the examples were left out")
        if search_items > n_calibration > 0:
            reasons.append(f"the search set is a part of the {n_calibration} calibration items")
        sizes = ", ".join(f"{name} {got[name]} instead of {n}" for name, n in fewer.items())
        return f"Fewer items than asked for: {sizes}. The reason: {'; '.join(reasons)}."


def load_workload(
    model: ModelName,
    data: str,
    seed: int,
    sizes: Mapping[str, int],
    keep_first: KeepFirst = 0,
    device: str = "cpu",
    dtype: str = "float32",
    form: Form = AS_THEY_ARE,
    begin: Begin = unseen,
    device_map: str | None = None,
    test_data: str = "",
) -> Workload:
    """Loads model and data, and leaves out examples that would let held-out data leak or that the model cannot read.

    A prompt that is in several splits, though it may go on differently there, stays in the test set before it stays in
    the validation set, and there before it stays in the calibration set. The same goes for prompts that differ as text,
    but not as tokens.

    Raises:
        ModelError: The model cannot be loaded.
        DataError: The data cannot be read, or no example of a split is left: the model cannot be evaluated on them, or
            they have prompts of other splits. Or prompts do not begin with the same system turn, which is asked for.
    """
    loaded = load_model(model, device, dtype, device_map)
    read = read_examples(data, seed, sizes, form, begin, loaded)
    examples, n_leaked = _without_leaks(read.splits, _prompt)
    encoded: dict[str, list[EncodedExample]] = {}
    unread: Counter[str] = Counter()
    for split in SPLITS:
        encoded[split], reasons = _encode_each(loaded, split, examples[split])
        unread += reasons
    splits, n_leaked_as_tokens = _without_leaks(encoded, _encoded_prompt)
    for split in SPLITS:
        if not splits[split]:
            raise DataError(
                f"No {split} example is left, as the prompt of each is in another split, too: give data with more "
                "distinct prompts."
            )
    texts = (example.prompt for split in SPLITS for example in examples[split])
    loaded = loaded.protecting(n_protected_tokens(keep_first, loaded.tokenizer, texts))
    left_out = Counter({REPEATED: read.n_repeated, LEAKED: n_leaked + n_leaked_as_tokens}) + unread
    workload = Workload(loaded, splits, "", dict(left_out), dict(sizes), read.sources)
    parts = "".join(fingerprint(examples[split]) for split in SPLITS)
    if workload.shared_boundaries or left_out[LeftOut.NO_PROMPT]:
        # Earlier versions read such data as another text, and what they found does not compare.
        parts += "divided where the tokens of the whole text agree with the prompt's"
    elsewhere, tested_sources = _elsewhere(loaded, splits, test_data, seed, sizes["test"], form, begin)
    return replace(
        workload,
        data_fingerprint=hashlib.sha256(parts.encode()).hexdigest(),
        elsewhere=elsewhere,
        tested_sources=tested_sources,
    )


def _elsewhere(
    loaded: LoadedModel,
    splits: Mapping[str, Sequence[EncodedExample]],
    test_data: str,
    seed: int,
    n: int,
    form: Form,
    begin: Begin,
) -> tuple[dict[str, list[EncodedExample]], list[ReadSource]]:
    """Examples of other data, without prompts that are in a split, and the sources that they are of."""
    found: dict[str, list[EncodedExample]] = {}
    sources: list[ReadSource] = []
    taken = {_encoded_prompt(example) for examples in splits.values() for example in examples}
    for source in parse_sources(test_data) if test_data else ():
        name = elsewhere_name(source.label)
        # Another seed, as a source of both would give the same examples.
        read = read_examples(source.label, seed + 1, {"test": n}, form, begin, loaded)
        encoded, _ = _encode_each(loaded, f"test ({source.label})", read.splits["test"])
        found[name] = [example for example in encoded if _encoded_prompt(example) not in taken]
        sources += read.sources
        if not found[name]:
            raise DataError(f"All prompts of --test-data {source.label} are among the study's own: give other data.")
    return found, sources


def _encode_each(
    loaded: LoadedModel, split: str, examples: Sequence[Example]
) -> tuple[list[EncodedExample], Counter[str]]:
    """The examples that the model can be evaluated on, and why it cannot be on the others; a DataError if on none."""
    encoded: list[EncodedExample] = []
    reasons: Counter[str] = Counter()
    first: ExampleError | None = None
    for example in examples:
        try:
            encoded += encode(loaded.tokenizer, [example], loaded.skipping.context, MAX_CONTINUATION)
        except ExampleError as error:
            reasons[error.reason] += 1
            first = first or error
    if first is not None and not encoded:
        raise DataError(
            f"None of the {len(examples)} {split} examples can be used: "
            f"{', '.join(f'{n} {reason}' for reason, n in reasons.most_common())}. Of the first: {first}"
        )
    return encoded, reasons


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
