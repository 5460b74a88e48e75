"""Text becomes the ids that the whole text has, as lm-evaluation-harness cuts them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ftp_core.demo.examples import demo_examples
from ftp_core.errors import DataError
from ftp_core.loading.models import load_model
from ftp_core.text.data import Example
from ftp_core.text.encoding import (
    IGNORED,
    EncodedExample,
    answer_batch,
    check_readable,
    choice_batch,
    encode,
    encoded_fingerprint,
    length_order,
    length_sorted_batches,
)

WORDS = ("<s>", "</s>", "▁ann", "▁has", "▁the", "▁cup", "▁", "\n")


def metaspace(append_end: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer like Llama's: every text begins with a space of its own, and perhaps ends with an end of text."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="\n"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    end = " </s>" if append_end else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A{end}", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("append_end", [False, True])
@pytest.mark.parametrize(("prompt", "completion"), [("ann has", " the cup"), ("ann has ", "the cup")])
def test_a_continuation_is_what_the_whole_text_has_more(append_end: bool, prompt: str, completion: str) -> None:
    (one,) = encode(metaspace(append_end), [Example(prompt, completion)], context=20)
    assert one.prompt == (0, 2, 3)
    assert one.continuations == ((4, 5),)


def test_an_end_of_text_that_was_written_stays() -> None:
    (one,) = encode(metaspace(), [Example("ann has", " the cup</s>")], context=20)
    assert one.continuations == ((4, 5, 1),)


def test_demo_items_begin_with_the_question_and_continue_with_an_answer() -> None:
    tokenizer = load_model("demo").tokenizer
    for example, one in zip(
        demo_examples("test", 20, 0), encode(tokenizer, demo_examples("test", 20, 0), 512), strict=True
    ):
        for choice, ids in zip(example.choices, one.continuations, strict=True):
            assert (
                tokenizer.decode(one.prompt + ids, skip_special_tokens=True).split()
                == (example.prompt + choice).split()
            )


def test_a_text_that_does_not_fit_is_an_error_with_both_lengths() -> None:
    with pytest.raises(DataError, match="Example 1 is 5 tokens long, but the model reads 4"):
        encode(metaspace(), [Example("ann has", " the cup")], context=4)


def test_batches_hold_the_right_answers_and_every_choice() -> None:
    items = [Example("ann", " has the cup"), Example("ann has", " the", (" cup", " the"), 1)]
    encoded = encode(metaspace(), items, context=20)
    answers, choices = answer_batch(encoded), choice_batch(encoded)
    assert answers.ids.tolist() == [[3, 4, 5], [4, IGNORED, IGNORED]] and answers.rows.tolist() == [0, 1]
    assert choices is not None
    assert choices.ids.tolist() == [[5], [4]] and choices.rows.tolist() == [1, 1]
    assert choice_batch(encoded[:1]) is None


def test_a_completion_is_cut_but_a_choice_never() -> None:
    long, short = " has the cup the cup", " the"
    items = [Example("ann", long), Example("ann", long, (short, long), 1)]
    completion, choice = encode(metaspace(), items, context=20, max_continuation=2)
    assert completion.continuations == ((3, 4),) and completion.choice_lengths == ()
    assert choice.continuations == ((4,), (3, 4, 5, 4, 5))
    # What accuracy is normalised by belongs to what is scored: all of it.
    assert choice.choice_lengths == (len("the"), len("has the cup the cup"))


def test_choices_that_do_not_fit_are_an_error_that_says_so() -> None:
    item = Example("ann", " the", (" the", " has the cup the cup"), 0)
    with pytest.raises(DataError, match="is 7 tokens long, but the model reads 6: shorten its prompt or its choices"):
        encode(metaspace(), [item], context=6, max_continuation=2)


def test_only_the_space_before_a_choice_is_no_character_of_it() -> None:
    # lm-evaluation-harness divides by len(choice), and puts one space between prompt and choice.
    item = Example("ann", " the", (" the", "  the cup ", " the\n"), 0)
    (one,) = encode(metaspace(), [item], context=20)
    assert one.choice_lengths == (len("the"), len(" the cup "), len("the\n"))


def test_a_group_comes_along_and_changes_no_name() -> None:
    items = [Example("ann", " the", group="near"), Example("ann", " the", (" the", " has"), 0)]
    with_group, without = encode(metaspace(), items, 20)
    assert (with_group.group, without.group) == ("near", None)
    assert with_group == replace(with_group, group=None)
    assert encoded_fingerprint([with_group]) == encoded_fingerprint([replace(with_group, group="far")])


def test_batches_of_similar_lengths_come_in_the_order_of_lengths() -> None:
    items = [EncodedExample((1,) * length, ((2,),), 0, False) for length in (3, 1, 2, 1, 5)]
    order = length_order(items)
    assert order == [1, 3, 2, 0, 4]
    batches = length_sorted_batches(items, 2)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert [id(one) for batch in batches for one in batch] == [id(items[place]) for place in order]


def test_the_fingerprint_of_encoded_examples_is_that_of_every_one_of_them() -> None:
    one, two, three = encode(
        metaspace(), [Example("ann", " has"), Example("ann", " the"), Example("ann", " the", (" the", " has"), 0)], 20
    )
    assert encoded_fingerprint([one, two]) == encoded_fingerprint((one, two))
    different = [(), (one,), (one, two), (two, one), (one, three), (one, one)]
    assert len({encoded_fingerprint(examples) for examples in different}) == len(different)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"prompt": ()}, "The prompt is empty: give it at least one token"),
        ({"prompt": [1, 2]}, r"The prompt is \[1, 2\], but must be a tuple"),
        ({"prompt": torch.tensor([1, 2])}, r"The prompt is tensor\(\[1, 2\]\), but must be a tuple"),
        ({"prompt": (1, -7, 2)}, "The prompt has -7 at place 1, but token ids are whole numbers"),
        ({"prompt": (1, 2.5)}, "The prompt has 2.5 at place 1"),
        ({"prompt": (True, 2)}, "The prompt has True at place 0"),
        ({"prompt": ("a", 2)}, "The prompt has 'a' at place 0"),
        ({"prompt": tuple(torch.tensor([3, 4]))}, r"The prompt has tensor\(3\) at place 0"),
        ({"continuations": ()}, r"The continuations are \(\), but must be a tuple with at least one"),
        ({"continuations": [(1,)]}, r"The continuations are \[\(1,\)\], but must be a tuple"),
        ({"continuations": ((1,), ())}, "A continuation is empty"),
        ({"continuations": ((1,), (2, None))}, "A continuation has None at place 1"),
        ({"continuations": (1, 2)}, "A continuation is 1, but must be a tuple of token ids"),
        ({"answer": 2}, "The answer is 2, but must be the index of one of the 2 continuations, 0 to 1"),
        ({"answer": -1}, "The answer is -1"),
        ({"answer": None}, "The answer is None"),
        ({"answer": 1.0}, "The answer is 1.0"),
        ({"choice_lengths": (3,)}, r"The choices' lengths are \(3,\), but must be 2 numbers of characters"),
        ({"choice_lengths": (3, 0)}, r"The choices' lengths are \(3, 0\)"),
    ],
)
def test_an_example_made_by_hand_that_is_none_is_an_error_that_names_what_is_wrong(
    parts: dict[str, Any], message: str
) -> None:
    right = {"prompt": (1, 2), "continuations": ((3,), (4, 5)), "answer": 1, "has_choices": True}
    assert EncodedExample(**right, choice_lengths=(3, 4)).answer == 1
    with pytest.raises(DataError, match=message):
        EncodedExample(**{**right, **parts})


def test_a_value_in_an_error_is_cut_where_it_is_long() -> None:
    with pytest.raises(DataError, match=r"The prompt is \[0, 1, .*\.\.\., but must") as caught:
        EncodedExample(list(range(10_000)), ((3,),), 0, False)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("answer", [2, None])
def test_an_answer_that_is_no_choice_is_an_error_with_the_examples_number(answer: int | None) -> None:
    items = [Example("ann", " the"), Example("ann", " the", (" the", " has"), answer)]
    with pytest.raises(DataError, match=f"Example 2: The answer is {answer}, but must be the index"):
        encode(metaspace(), items, 20)


def test_examples_that_a_model_cannot_read_are_errors_with_their_number() -> None:
    right = EncodedExample((1, 9), ((2, 3), (4,)), 1, True)
    check_readable([right, right], context=4, vocabulary=10)
    with pytest.raises(DataError, match="Example 2 has the token 9, but the model knows 9 tokens, 0 to 8"):
        check_readable([EncodedExample((1,), ((2,),), 0, False), right], context=4, vocabulary=9)
    with pytest.raises(DataError, match="Example 1 has the token 7, but the model knows 7 tokens"):
        check_readable([EncodedExample((1,), ((2,), (3, 7)), 0, True)], context=4, vocabulary=7)
    with pytest.raises(DataError, match="Example 2 is 4 tokens long, but the model reads 3"):
        check_readable([EncodedExample((1,), ((2,),), 0, False), right], context=3, vocabulary=10)
    with pytest.raises(DataError, match="Example 1 is of type Example, but must be an EncodedExample: encode examples"):
        check_readable([Example("ann", " the")], context=3, vocabulary=10)  # type: ignore[list-item]
