"""A pruned model in lm-evaluation-harness: scored as `ftp_core` scores it, and never routed by what is scored."""

from __future__ import annotations

import copy
import json
import math
import os
import runpy
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import make_table
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ftp_core.demo import assets
from ftp_core.demo.examples import demo_examples
from ftp_core.errors import DataError, ModelError
from ftp_core.harness import FTPLM
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import Router, StaticRouter
from ftp_core.schedule import SparsitySchedule, kept_count
from ftp_core.skipping import pruned_forward
from ftp_core.skipping.skipping import PromptPass
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.data import Example
from ftp_core.text.encoding import EncodedExample, ExampleError, LeftOut, choice_batch, encode, prompt_batch
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.small_tokenizers import tokenizer_of
from tests.ftp_core.tiny_models import tiny

# Hard enough that the model errs, and that the two accuracies differ.
SCHEDULE = SparsitySchedule([0.0, 0.4, 0.0, 0.5, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3])
ZERO = SparsitySchedule.uniform(0.0, 12)
TOLERANCE = {"atol": 2e-4, "rtol": 1e-4}
N_ITEMS = 16
MULTIPLE_CHOICE = """
task: stories
dataset_path: json
dataset_kwargs:
  data_files:
    test: {items}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
"""
# What docs/lm-eval.md tells users of lm-eval 0.4.13 to write: a group without tasks whose file imports the model.
INTRODUCTION = """
group: ftp
task: []
metadata:
  model: !function ftp_core.harness.FTPLM
"""


@dataclass(frozen=True)
class Demo:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path

    def pruned(self, schedule: SparsitySchedule = SCHEDULE, router: Router | None = None, **options: Any) -> FTPLM:
        pruned = FTPForCausalLM.from_dense(self.model, schedule, router)
        return FTPLM(pruned, tokenizer=self.tokenizer, **{"batch_size": 3, **options})

    def dense(self, **options: Any) -> HFLM:
        return HFLM(self.model, tokenizer=self.tokenizer, **{"batch_size": 3, **options})


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    model = AutoModelForCausalLM.from_pretrained(assets(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(assets())
    folder = tmp_path_factory.mktemp("pruned")
    FTPForCausalLM.from_dense(model, SCHEDULE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Demo(model, tokenizer, folder)


@pytest.fixture
def prompt_passes(monkeypatch: pytest.MonkeyPatch) -> list[PromptPass]:
    """The passes over prompts that pruned models make, in which it stands which tokens were kept."""
    passes: list[PromptPass] = []

    class Recorded(PromptPass):
        def __post_init__(self) -> None:
            super().__post_init__()
            passes.append(self)

    monkeypatch.setattr(pruned_forward, "PromptPass", Recorded)
    return passes


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=index)  # type: ignore[arg-type]
        for index, one in enumerate(arguments)
    ]


def score(lm: HFLM, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    return lm.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)


def likelihoods(lm: HFLM, pairs: list[tuple[str, str]]) -> Tensor:
    return torch.tensor([likelihood for likelihood, _ in score(lm, pairs)])


def choices_of(examples: list[Example]) -> list[tuple[str, str]]:
    return [(example.prompt, choice) for example in examples for choice in example.choices]


def own_likelihoods(
    demo: Demo, examples: list[EncodedExample], router: Router, schedule: SparsitySchedule = SCHEDULE
) -> Tensor:
    """Log-likelihood of every choice by `SkippingModel`: prompts first, and their choices behind them."""
    model, choices = SkippingModel(demo.model), choice_batch(examples)
    assert choices is not None
    logits = model.continuation_logits(model.prefill(prompt_batch(examples), schedule, router), choices)
    picked = logits.log_softmax(-1).gather(-1, choices.ids.clamp(min=0)[..., None])[..., 0]
    return picked.masked_fill(choices.ids < 0, 0.0).sum(-1)


def run_lm_eval(
    module: str, monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str, of_its_own: bool
) -> dict[str, Any]:
    """What a command line of lm-eval writes about a run, offline, in this process or in one of its own."""
    output = folder / "results"
    arguments = (*arguments, "--device", "cpu", "--output_path", str(output))
    if of_its_own:
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_HOME": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    else:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        monkeypatch.chdir(folder)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    (written,) = output.rglob("results_*.json")
    result: dict[str, Any] = json.loads(written.read_text())
    return result


@pytest.mark.parametrize("module", [pytest.param("lm_eval", marks=pytest.mark.slow), "ftp_core.harness"])
def test_the_command_line_of_lm_eval_measures_the_accuracies_that_quality_measures(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    examples = demo_examples("test", N_ITEMS)
    items = tmp_path / "items.jsonl"
    with items.open("w") as file:
        for example in examples:
            item = {
                "prompt": example.prompt,
                "choices": [choice.strip() for choice in example.choices],
                "answer": example.answer,
            }
            file.write(json.dumps(item) + "\n")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "stories.yaml").write_text(MULTIPLE_CHOICE.format(items=items))
    (tmp_path / "ftp.yaml").write_text(INTRODUCTION)
    result = run_lm_eval(
        module,
        monkeypatch,
        tmp_path,
        *["--model", "ftp", "--model_args", f"pretrained={demo.folder}", "--batch_size", "5"],
        *["--include_path", "tasks", "--tasks", "ftp.yaml,stories" if module == "lm_eval" else "stories"],
        # A process that has imported this package knows its models.
        of_its_own=module == "lm_eval",
    )
    model = SkippingModel(demo.model)
    quality = QualitySet(model, encode(demo.tokenizer, examples, model.context)).evaluate(
        SCHEDULE, StaticRouter(), choices=True
    )
    assert quality.n_choice_items == N_ITEMS
    assert result["results"]["stories"]["acc,none"] == quality.accuracy
    assert result["results"]["stories"]["acc_norm,none"] == quality.accuracy_norm
    assert quality.accuracy is not None and 0.25 < quality.accuracy < 1
    assert result["config"]["model"] == "ftp"
    assert result["config"]["ftp_schedule"] == list(SCHEDULE)
    assert result["config"]["ftp_router"] == "static"


@pytest.mark.parametrize("router", [StaticRouter(), random_router(1)], ids=["static", "dynamic"])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_a_choice_is_as_likely_as_behind_a_prompt_that_ran_before_it(
    demo: Demo, router: Router, batch_size: int
) -> None:
    examples = demo_examples("test", 5)
    expected = own_likelihoods(demo, encode(demo.tokenizer, examples, 512), router)
    found = likelihoods(demo.pruned(router=router, batch_size=batch_size), choices_of(examples))
    torch.testing.assert_close(found, expected, **TOLERANCE)


class Recording(FTPLM):
    """Remembers the tokens that it scores."""

    def _loglikelihood_tokens(self, requests: list[Any], *arguments: Any, **options: Any) -> list[tuple[float, bool]]:
        self.scored = [(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        return super()._loglikelihood_tokens(requests, *arguments, **options)


def spanning(kind: str, router: Router | None = None, **options: Any) -> Recording:
    """A small pruned model whose tokenizer has tokens that span the end of a prompt."""
    tokenizer = tokenizer_of(kind)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=1,
    )
    pruned = FTPForCausalLM.from_dense(LlamaForCausalLM(config).eval(), SparsitySchedule([0.0, 0.5]), router)
    return Recording(pruned, tokenizer=tokenizer, **{"batch_size": 3, **options})


def items_of(examples: list[Example]) -> list[Instance]:
    """What a task of multiple choice asks, item by item."""
    return [
        Instance("multiple_choice", {}, (example.prompt, choice), number, ("items", place, 1))
        for place, example in enumerate(examples)
        for number, choice in enumerate(example.choices)
    ]


PARTS = ["print", "(", '"hello")', "hel", "lo", " wor", "ld", ": C", "\n", "你", "好世界", "Answer", " "]
parts = st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("".join)


@pytest.mark.parametrize("kind", ["across words", "line breaks", "byte fallback", "unigram", "wordpiece"])
@settings(max_examples=40)
@given(prompts=st.lists(parts, min_size=1, max_size=3), choices=st.lists(parts, min_size=2, max_size=4))
def test_the_tokens_that_are_scored_are_those_of_quality(kind: str, prompts: list[str], choices: list[str]) -> None:
    # Equal prompts are different items all the same, whose other choices may end theirs elsewhere.
    examples = [Example(f"zz, {prompt}", one[0], one, 0) for prompt in prompts for one in ((choices[0],), (*choices,))]
    lm = spanning(kind)
    try:
        expected = [
            (one.prompt, ids) for one in encode(lm.tokenizer, examples, lm.max_length) for ids in one.continuations
        ]
    except ExampleError as error:
        assume(error.reason is not LeftOut.NO_PROMPT)
        with pytest.raises(DataError, match="is 0 tokens long"):
            lm.loglikelihood(items_of(examples), disable_tqdm=True)
        return
    found = lm.loglikelihood(items_of(examples), disable_tqdm=True)
    assert lm.scored == expected
    assert len(found) == len(expected)


@pytest.mark.parametrize("kind", ["line breaks", "byte fallback", "wordpiece"])
def test_items_that_share_a_token_have_the_accuracy_that_quality_measures(kind: str) -> None:
    lm, choices = spanning(kind, batch_size=4), ('"hello")', "hello):", " hello", "你好")
    examples = [
        Example(f"{start} print(", choices[n % 4], choices, n % 4)
        for n, start in enumerate(
            ["zz", "hello world", "Answer: C", "def", "print(hello)", "你好世界", "zz zz", "cafe"]
        )
    ]
    encoded = encode(lm.tokenizer, examples, lm.max_length)
    assert kind == "wordpiece" or any(one.n_shared for one in encoded)
    quality = QualitySet(SkippingModel(lm.model.base), encoded).evaluate([0.0, 0.5], StaticRouter(), choices=True)
    scores = torch.tensor([likelihood for likelihood, _ in lm.loglikelihood(items_of(examples), disable_tqdm=True)])
    right = torch.tensor([example.answer for example in examples])
    scores = scores.view(len(examples), -1)
    lengths = torch.tensor([one.choice_lengths for one in encoded])
    assert quality.accuracy == float((scores.argmax(1) == right).float().mean())
    assert quality.accuracy_norm == float(((scores / lengths).argmax(1) == right).float().mean())


def test_a_word_that_is_cut_is_scored_as_the_word_where_lm_eval_has_nothing_to_score() -> None:
    lm = spanning("line breaks")
    with pytest.raises(AssertionError):
        HFLM(lm.model.base, tokenizer=lm.tokenizer, batch_size=1).loglikelihood(
            requests("loglikelihood", [("zz hello wor", "ld")]), disable_tqdm=True
        )
    score(lm, [("zz hello wor", "ld"), ("hello", " world")])
    tokens = [tuple(map(lm.tokenizer.decode, (context[-1:], rest))) for context, rest in lm.scored]
    assert tokens == [(" hello", " world"), ("hello", " world")]


@pytest.mark.parametrize("special", [None, True, False])
def test_a_context_without_a_token_of_its_own_is_the_token_that_lm_eval_puts_before_texts(special: bool | None) -> None:
    for kind in ("across words", "line breaks"):
        lm = spanning(kind, add_bos_token=special, prefix_token_id=7)
        dense = HFLM(lm.model.base, tokenizer=lm.tokenizer, batch_size=1, add_bos_token=special, prefix_token_id=7)
        score(lm, [("", "hello"), ("hel", "lo"), ("zz", "zz")])
        empty, shared, plain = lm.scored
        assert empty == ((7,), (*dense.tok_encode("hello", add_special_tokens=False),))
        has_special = kind == "line breaks" and special is not False
        assert shared == (((lm.tokenizer.bos_token_id,) if has_special else (7,)), empty[1])
        assert plain == tuple(map(tuple, dense._encode_pair("zz", "zz")))


def test_what_is_scored_has_no_say_in_which_tokens_of_the_prompt_are_kept(
    demo: Demo, prompt_passes: list[PromptPass]
) -> None:
    router, example = random_router(1), demo_examples("test", 1)[0]
    n_prompt = len(demo.tokenizer(example.prompt)["input_ids"])
    choices = [*example.choices, " the the the the the the the", " a lamp is in the garden, and Anna has the hat."]
    score(demo.pruned(router=router, batch_size=4), [(example.prompt, choice) for choice in choices])
    kept_alone = SkippingModel(demo.model).prefill(
        prompt_batch(encode(demo.tokenizer, [example], 512)), SCHEDULE, router
    )
    assert prompt_passes
    for one in prompt_passes:
        for kept, alone in zip(one.kept, kept_alone.kept, strict=True):
            assert torch.equal(kept[:, :n_prompt], alone.expand(len(kept), -1))
    assert any(not bool(kept.all()) for kept in kept_alone.kept)


def test_a_choice_is_as_likely_alone_as_among_others(demo: Demo) -> None:
    lm, pairs = demo.pruned(router=random_router(1)), choices_of(demo_examples("test", 2))
    alone = torch.cat([likelihoods(lm, [pair]) for pair in pairs])
    torch.testing.assert_close(likelihoods(lm, pairs), alone, **TOLERANCE)


def test_equal_texts_that_are_divided_elsewhere_are_not_taken_for_one(demo: Demo) -> None:
    text = demo_examples("test", 1)[0].prompt + " garden"
    words = text.split(" ")
    pairs = [(" ".join(words[:cut]), " " + " ".join(words[cut:])) for cut in (20, 40, 60)]
    lm = demo.pruned()
    together, alone = likelihoods(lm, pairs), torch.cat([likelihoods(lm, [pair]) for pair in pairs])
    torch.testing.assert_close(together, alone, **TOLERANCE)


def test_choices_of_one_token_share_a_row(demo: Demo, prompt_passes: list[PromptPass]) -> None:
    prompt = demo_examples("test", 1)[0].prompt
    pairs = [(prompt, choice) for choice in (" garden", " palace", " station", " Anna")]
    lm = demo.pruned(batch_size=8)
    found = likelihoods(lm, pairs)
    assert [len(one.real) for one in prompt_passes] == [1]
    torch.testing.assert_close(found, torch.cat([likelihoods(lm, [pair]) for pair in pairs]), **TOLERANCE)


def test_of_a_request_that_is_too_long_the_prompt_is_what_remains_of_the_context(demo: Demo) -> None:
    example, length = demo_examples("test", 1)[0], 48
    (whole,) = encode(demo.tokenizer, [example], 512)
    # lm-eval reads `length` tokens, and predicts one more.
    cut = [
        EncodedExample(whole.prompt[-(length + 1 - len(choice)) :], (choice,), 0, True)
        for choice in whole.continuations
    ]
    assert len(whole.prompt) > length
    expected = torch.cat([own_likelihoods(demo, [one], StaticRouter()) for one in cut])
    found = likelihoods(demo.pruned(max_length=length), choices_of([example]))
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_greedy_is_what_greedy_decoding_would_write(demo: Demo) -> None:
    lm, prompt = demo.pruned(), demo_examples("test", 1)[0].prompt
    ids = demo.tokenizer(prompt, return_tensors="pt")["input_ids"]
    written = demo.tokenizer.decode(lm.model.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :])
    assert [greedy for _, greedy in score(lm, [(prompt, written), (prompt, " lamp lamp lamp")])] == [True, False]


def test_a_schedule_of_zeros_is_what_lm_eval_makes_of_the_dense_model(demo: Demo) -> None:
    dense, zero = demo.dense(), demo.pruned(ZERO)
    examples = demo_examples("test", 4)
    pairs = [*choices_of(examples), ("", "Story: Anna is in the garden."), (examples[0].prompt + " ", "Anna")]
    expected, found = score(dense, pairs), score(zero, pairs)
    torch.testing.assert_close(torch.tensor([one[0] for one in found]), torch.tensor([one[0] for one in expected]))
    assert [one[1] for one in found] == [one[1] for one in expected]
    texts = requests("loglikelihood_rolling", [(example.prompt,) for example in examples])
    torch.testing.assert_close(
        torch.tensor(zero.loglikelihood_rolling(texts)), torch.tensor(dense.loglikelihood_rolling(texts))
    )
    prompts = requests("generate_until", [(one.prompt, {"until": ["."], "max_gen_toks": 6}) for one in examples])
    assert zero.generate_until(prompts, disable_tqdm=True) == dense.generate_until(prompts, disable_tqdm=True)


def test_generated_text_is_what_the_pruned_model_writes_behind_each_prompt_alone(demo: Demo) -> None:
    lm, examples = demo.pruned(router=random_router(1), batch_size=4), demo_examples("test", 4)
    options = {"until": ["Question"], "max_gen_toks": 8}
    found = lm.generate_until(
        requests("generate_until", [(one.prompt, options) for one in examples]), disable_tqdm=True
    )
    for example, text in zip(examples, found, strict=True):
        ids = demo.tokenizer(example.prompt, return_tensors="pt")["input_ids"]
        alone = lm.model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert text == demo.tokenizer.decode(alone, skip_special_tokens=True).split("Question")[0]


def test_a_text_without_a_prompt_skips_nothing_and_says_so(demo: Demo, caplog: pytest.LogCaptureFixture) -> None:
    text = requests("loglikelihood_rolling", [(demo_examples("test", 1)[0].prompt,)])
    found = torch.tensor(demo.pruned().loglikelihood_rolling(text))
    assert "skips nothing" in caplog.text
    torch.testing.assert_close(found, torch.tensor(demo.dense().loglikelihood_rolling(text)), **TOLERANCE)


def test_only_the_last_window_of_a_long_text_has_a_prompt(demo: Demo, prompt_passes: list[PromptPass]) -> None:
    text = " ".join(example.prompt for example in demo_examples("test", 2))
    length, n_tokens = 64, len(demo.tokenizer(text)["input_ids"])
    demo.pruned(max_length=length, batch_size=1).loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)]))
    prompts = [one.state.row_lengths[0] for one in prompt_passes]
    assert prompts == [*[1] * (n_tokens // length), length - n_tokens % length + 1]


def test_a_batch_size_may_be_found_automatically(demo: Demo) -> None:
    pairs = choices_of(demo_examples("test", 2))
    lm = demo.pruned(batch_size="auto", max_batch_size=2, max_length=256)
    torch.testing.assert_close(likelihoods(lm, pairs), likelihoods(demo.pruned(), pairs), **TOLERANCE)


def test_weights_that_stay_with_the_dense_model_are_found_there(demo: Demo, tmp_path: Path) -> None:
    dense = AutoModelForCausalLM.from_pretrained(assets(), dtype=torch.float32)
    FTPForCausalLM.from_dense(dense, SCHEDULE, random_router(1)).save_pretrained(tmp_path, include_base=False)
    demo.tokenizer.save_pretrained(tmp_path)
    lm = FTPLM(str(tmp_path), device="cpu", dtype="float32", batch_size=4)
    pairs = choices_of(demo_examples("test", 2))
    torch.testing.assert_close(
        likelihoods(lm, pairs), likelihoods(demo.pruned(router=random_router(1)), pairs), **TOLERANCE
    )


def test_decoded_tokens_that_skip_are_routed_by_what_stands_before_them(demo: Demo) -> None:
    pruned = FTPForCausalLM.from_dense(demo.model, SCHEDULE, random_router(1), decode_sparsity=0.5)
    lm = FTPLM(pruned, tokenizer=demo.tokenizer, batch_size=3)
    prompt, text = demo_examples("test", 1)[0].prompt, " Anna is in the garden with the lamp"
    words = text.split(" ")[1:]
    parts = [(prompt, " " + " ".join(words[:n])) for n in range(1, len(words) + 1)]
    found = likelihoods(lm, parts)
    # What follows changes nothing: each word costs the same, however far the text goes on.
    ids = demo.tokenizer(prompt + text, return_tensors="pt")["input_ids"]
    start = len(demo.tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        logits = pruned(ids, prompt_length=start).logits[0, start - 1 : -1]
    each = logits.log_softmax(-1).gather(-1, ids[0, start:, None])[:, 0]
    assert len(each) == len(words)
    torch.testing.assert_close(found, each.cumsum(0), **TOLERANCE)
    assert all(later < earlier for earlier, later in pairwise(found.tolist()))


def test_lm_eval_finds_the_model_by_an_entry_point() -> None:
    (found,) = entry_points(group="lm_eval.models", name="ftp")
    assert found.load() is FTPLM


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["ls", "--help"], ["--model", "ftp", "--nonsense"]]
)
def test_our_command_line_is_that_of_lm_eval(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = []
    for module in ("lm_eval", "ftp_core.harness"):
        monkeypatch.delitem(sys.modules, "lm_eval.__main__", raising=False)
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        written.append((end.value.code, capsys.readouterr()))
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda demo: FTPLM(str(assets()), device="cpu"), "type 'llama', not a pruned one.*--model hf"),
        (lambda demo: FTPLM(str(assets().parent), device="cpu"), "No pruned model at .*save_pretrained"),
        (lambda demo: FTPLM("/nowhere/at/all", device="cpu"), "No pruned model at '/nowhere/at/all'"),
        (lambda demo: FTPLM(demo.model, tokenizer=demo.tokenizer), "LlamaForCausalLM is not a pruned model"),
        (lambda demo: demo.pruned(peft="adapter"), "takes no peft: merge the adapter .*ftp-search run --adapter DIR"),
        (lambda demo: demo.pruned(delta="weights"), "takes no delta: apply it to the dense model"),
        (lambda demo: demo.pruned(backend="seq2seq"), "'seq2seq', but pruned models are causal"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(demo: Demo, make: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make(demo)


def test_a_dense_model_that_moved_is_named_among_the_arguments(demo: Demo, tmp_path: Path) -> None:
    shutil.copytree(assets(), tmp_path / "before")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "before", dtype=torch.float32)
    FTPForCausalLM.from_dense(dense, SCHEDULE).save_pretrained(tmp_path / "pruned", include_base=False)
    demo.tokenizer.save_pretrained(tmp_path / "pruned")
    (tmp_path / "before").rename(tmp_path / "after")
    with pytest.raises(ModelError, match="The dense model .*before', to which .* refers, cannot be loaded"):
        FTPLM(str(tmp_path / "pruned"), device="cpu")
    parts = [("Story: Anna", " is in the garden")]
    moved = FTPLM(str(tmp_path / "pruned"), device="cpu", revision="main", base_model=str(tmp_path / "after"))
    torch.testing.assert_close(likelihoods(moved, parts), likelihoods(demo.pruned(), parts), **TOLERANCE)


def test_a_continuation_without_a_token_or_longer_than_the_context_is_refused(demo: Demo) -> None:
    with pytest.raises(DataError, match="'' is 0 tokens long"):
        score(demo.pruned(), [("Story: Anna", "")])
    with pytest.raises(DataError, match="must have between 1 and 4"):
        score(demo.pruned(max_length=4), [("Story: Anna", " is in the garden with the lamp.")])


def test_without_lm_eval_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ftp_core.harness")
    monkeypatch.setitem(sys.modules, "lm_eval.api.registry", None)
    with pytest.raises(ModelError, match=r"pip install -c constraints.txt '\.\[eval\]'"):
        import_module("ftp_core.harness")


@pytest.mark.parametrize("batch_size", [1, 2, 7])
@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gemma3_text", "phi3-longrope"])
def test_likelihoods_are_those_of_quality_sets_whatever_the_batch(name: str, batch_size: int) -> None:
    model, tokenizer = copy.deepcopy(tiny(name)).double(), AutoTokenizer.from_pretrained(assets())
    generator = torch.Generator().manual_seed(3)
    # Lengths that cross a window, and the one from which on longrope has other frequencies.
    examples = [
        EncodedExample(tuple(torch.randint(3, 50, (prompt,), generator=generator).tolist()), (rest,), 0, False)
        for prompt, rest in [(23, (5, 6, 7)), (24, (8, 9, 10)), (14, (3, 4)), (12, (9, 9, 8)), (2, (40,)), (40, (7, 7))]
    ]
    for schedule in (SparsitySchedule([0.0, 0.0, 0.0]), SparsitySchedule([0.3, 0.0, 0.6])):
        lm = FTPLM(FTPForCausalLM.from_dense(model, schedule), tokenizer=tokenizer, batch_size=batch_size)
        requests = [(None, list(one.prompt), list(one.continuations[0])) for one in examples]
        total = sum(likelihood for likelihood, _ in lm._loglikelihood_tokens(requests, disable_tqdm=True))
        quality = QualitySet(SkippingModel(model), examples, 4).evaluate(schedule, StaticRouter())
        assert math.exp(-total / quality.n_tokens) == pytest.approx(quality.perplexity, rel=1e-5)


def test_protected_tokens_are_an_argument_of_the_model(demo: Demo, prompt_passes: list[PromptPass]) -> None:
    prompt = demo_examples("test", 1, 0)[0].prompt
    n_tokens = len(demo.tokenizer(prompt)["input_ids"])
    kept = {}
    for keep_first in (0, 9):
        evaluated = FTPLM(str(demo.folder), device="cpu", batch_size=3, keep_first=keep_first)
        assert evaluated.model.keep_first == evaluated.get_model_info()["ftp_keep_first"] == keep_first
        prompt_passes.clear()
        evaluated.loglikelihood([Instance("loglikelihood", {}, (prompt, " red"), 0)], disable_tqdm=True)
        [passed] = prompt_passes
        kept[keep_first] = [row[0, :n_tokens].nonzero().flatten().tolist() for row in passed.kept]
    assert kept[0] != kept[9]
    for sparsity, own in zip(SCHEDULE, kept[9], strict=True):
        n_kept = kept_count(sparsity, n_tokens)
        first = min(9, n_kept - 1) if sparsity > 0 else n_kept
        assert own == [*range(first), *range(n_tokens - n_kept + first, n_tokens)]


def test_lm_evals_own_class_does_not_load_a_pruned_model(demo: Demo) -> None:
    for options in ({}, {"trust_remote_code": True}):
        with pytest.raises(ModelError, match="Give --model ftp"):
            HFLM(pretrained=str(demo.folder), device="cpu", **options)
    assert isinstance(FTPLM(str(demo.folder), device="cpu").model, FTPForCausalLM)


def test_tables_have_their_headings() -> None:
    results = {"results": {"arc": {"acc,none": 0.5, "acc_stderr,none": 0.1}}, "versions": {"arc": 1}}
    assert make_table(results).startswith("|Tasks|Version|Filter|n-shot|Metric|")
