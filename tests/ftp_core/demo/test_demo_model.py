"""The model that ships with the project is what the README says of it."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from ftp_core.demo import assets
from ftp_core.demo.evaluate import accuracy_by_distance
from ftp_core.demo.examples import demo_examples
from ftp_core.demo.task import Split
from ftp_core.loading.models import load_model
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.text.encoding import EncodedExample, encode
from ftp_core.training.distillation import distill
from ftp_core.training.distillation_config import DistillationConfig


def test_it_is_a_small_llama_of_twelve_blocks_in_bf16() -> None:
    config = json.loads((assets() / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_hidden_layers"] == 12
    weights = assets() / "model.safetensors"
    assert weights.stat().st_size <= 8_000_000
    with safe_open(weights, "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


def test_plain_transformers_answers_a_question_with_it() -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(assets()), AutoTokenizer.from_pretrained(assets())
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    right = 0
    for example in demo_examples("test", 10, seed=5):
        prompt = tokenizer(example.prompt, return_tensors="pt")
        written = model.generate(**prompt, max_new_tokens=4, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        right += tokenizer.decode(written, skip_special_tokens=True).strip().startswith(example.completion.strip())
    assert right >= 8


@pytest.mark.slow
def test_the_distilled_router_beats_the_static_one_at_the_same_schedule() -> None:
    loaded = load_model("demo")
    model = loaded.skipping

    def examples(split: Split, n: int) -> list[EncodedExample]:
        return encode(loaded.tokenizer, demo_examples(split, n, seed=0), model.context)

    # Half of the tokens skip the blocks that carry the answer, the others run nearly all: here the choice matters.
    schedule = SparsitySchedule([0, 0.45, 0, 0.45, 0.45, 0, 0.45, 0.45, 0.7, 0.45, 0.45, 0])
    held_out = QualitySet(model, examples("validation", 128))
    config = DistillationConfig(seed=0)
    result = distill(model, examples("calibration", 256), [schedule], config, held_out=held_out)
    test = QualitySet(model, examples("test", 200))
    static = test.evaluate(schedule, StaticRouter(), choices=True)
    dynamic = test.evaluate(schedule, result.router, choices=True)
    assert static.accuracy is not None and dynamic.accuracy is not None
    assert dynamic.accuracy >= static.accuracy + 0.02
    assert dynamic.kl <= 0.8 * static.kl


@pytest.mark.slow
def test_it_answers_at_every_statement_distance() -> None:
    loaded = load_model("demo")
    accuracy = accuracy_by_distance(loaded.skipping.model, loaded.tokenizer, "test", seed=1, per_distance=100)
    choices = [one.choice for one in accuracy.values()]
    assert len(choices) == 30 and all(one.n == 100 for one in accuracy.values())
    assert sum(choices) / len(choices) >= 0.95
    assert min(choices) >= 0.90
