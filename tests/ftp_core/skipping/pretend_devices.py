"""Runs models on devices that compute nothing, but know which device every tensor is on.

They are torch's fake tensors on a backend made in Python: an operator whose operands are on different devices fails, as
does whatever would make the host wait for a GPU (reading a number, copying a list). Registering a backend is for good,
so that tests start this file as a program of its own:

    python tests/ftp_core/skipping/pretend_devices.py spread
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import product
from pathlib import Path

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[3]))

from ftp_core.routers import (
    DynamicRouter,
    HiddenRouter,
    OnePassRouter,
    RandomRouter,
    Router,
    RoutingState,
    StaticRouter,
)
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping import skipping_model
from ftp_core.skipping.cache import FTPCache
from ftp_core.skipping.decoding import DecodePass
from ftp_core.skipping.skipping import PromptPass
from ftp_core.skipping.skipping_model import SkippingModel
from tests.ftp_core.tiny_models import CONFIGS

DEVICES = ("pretend:0", "pretend:1")


def fake_model(name: str) -> PreTrainedModel:
    config = AutoConfig.for_model(**CONFIGS[name])
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)


def moved(module: nn.Module, device: str) -> nn.Module:
    for part in module.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            part._parameters[name] = nn.Parameter(weight.to(device), requires_grad=False)
    return module


def spread_model(name: str) -> PreTrainedModel:
    """Inputs and embedding on the CPU, blocks on two devices, norm and head on the last one."""
    model = fake_model(name)
    decoder = model.model
    places = dict(enumerate((*DEVICES, DEVICES[0])))
    for index, block in enumerate(decoder.layers):
        add_hook_to_module(moved(block, places[index]), AlignDevicesHook(places[index], skip_keys={"past_key_values"}))
    for last in (decoder.norm, model.lm_head):
        add_hook_to_module(moved(last, DEVICES[1]), AlignDevicesHook(DEVICES[1]))
    add_hook_to_module(model, AlignDevicesHook("cpu", io_same_device=True))
    return model


class DecidesByPosition(DynamicRouter):
    """Listens and scores, but decides by position: attention without numbers decides nothing."""

    def select(self, scores: torch.Tensor, sparsity: float, state: RoutingState) -> torch.Tensor:
        assert scores.device == state.real.device
        return StaticRouter().keep(sparsity, state)


class HiddenByPosition(HiddenRouter):
    select = DecidesByPosition.select


class OnePassByPosition(OnePassRouter):
    select = DecidesByPosition.select


@torch.inference_mode()
def spread() -> None:
    """Prompts of different lengths, tokens behind them, and the head, with blocks on two devices."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        models = [SkippingModel(spread_model(name)) for name in ("llama", "gemma2")]
        ids = torch.zeros(2, 20, dtype=torch.long)
    reading: list[Router] = [HiddenByPosition(32), OnePassByPosition(32, 3)]
    routers = [StaticRouter(), DecidesByPosition(window=3), *reading]
    schedule = SparsitySchedule([0.3, 0.0, 0.6])
    for model, router in product(models, routers):
        # What is read on the host is real, and read before the blocks run.
        state = RoutingState.padded_right(torch.tensor([20, 13]), 20)
        cache = FTPCache(model.family.windows(model.model))
        handler = PromptPass(model.model, model.family, schedule, router, state, state.real, cache)
        assert state.row_lengths == (20, 13)
        with fake:
            hidden = model.run(handler, ids, past_key_values=cache, use_cache=True)
            assert hidden.device == torch.device(DEVICES[1])
            assert hidden.shape == (2, 20, 32)
        assert [str(block.keys.device) for block in cache.blocks] == [*DEVICES, DEVICES[0]]
        assert all(block.keys.device == block.positions.device for block in cache.blocks)
        columns = fake.from_tensor(torch.full((2, 1), 20))
        cache.seen = 20
        behind = DecodePass(model.model, model.family, cache, torch.ones(2, 1, dtype=torch.bool), columns)
        with fake:
            model.run(behind, ids[:, :1], position_ids=columns, past_key_values=cache, use_cache=True)
            assert model.logits(hidden.to("cpu")).device.type == "cpu"


class KeepsMost(DynamicRouter):
    """Decides by thresholds, how many the host cannot know."""

    @property
    def keeps_budget(self) -> bool:
        return False


def there(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICES[0])


@torch.inference_mode()
def packed() -> None:
    """Blocks of rows that are packed: nothing is read, and nothing copied to the device, before the last has run."""
    fake, schedule, lengths = FakeTensorMode(allow_non_fake_inputs=True), SparsitySchedule([0.3, 0.0, 0.6]), (20, 13)
    for name in ("llama", "gpt_neox", "mistral"):
        with fake:
            model = SkippingModel(moved(fake_model(name), DEVICES[0]))
            threshold = moved(KeepsMost(window=3), DEVICES[0])
        threshold.set_thresholds([0.1] * 3, schedule)
        routers: list[Router] = [StaticRouter(), RandomRouter(), threshold]
        for router in routers:
            # What the host reads before the blocks run is real, and what they work on is on the device.
            state, cache = RoutingState.padded_right(torch.tensor(lengths), 20), FTPCache((None,) * 3)
            handler = PromptPass(model.model, model.family, schedule, router, state, state.real, cache, packs=True)
            with fake:
                on_device = RoutingState(*map(there, (state.real, state.positions, state.lengths, state.attention)))
                vars(on_device)["row_lengths"] = lengths
                handler.state, handler.real, handler._completion = on_device, on_device.real, ~on_device.real
                handler.columns = there(handler.columns)
                unpacked: list[int] = []
                vars(handler)["_unpack"] = partial(unpacked.append, 1)
                ids = torch.zeros(2, 20, dtype=torch.long, device=DEVICES[0])
                hidden = model.run(handler, ids, past_key_values=cache, use_cache=True)
                assert hidden.shape == (2, 20, 32)
            assert unpacked == [1]
            assert sorted(handler._packings) == [0, 2]


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend("pretend")
    # Weights without numbers are neither finite nor not.
    skipping_model.check_finite = lambda model: None
    {"spread": spread, "packed": packed}[sys.argv[1]]()
