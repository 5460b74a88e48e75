"""Workers of one machine share the weights, and find what a single process finds."""

from __future__ import annotations

import gc
import os
import pickle
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ftp_core.demo.examples import demo_examples
from ftp_core.loading.models import load_model
from ftp_core.routers import DynamicRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.fitted_keys import FittedKeys, fitted_keys_of, give_fitted_keys
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import encode
from search.errors import EvaluationError
from search.evaluators import Evaluation, Task
from search.evaluators.local import LocalEvaluator, ModelSetup
from search.evaluators.ray_cluster import cluster
from search.evaluators.ray_pool import RayPool
from search.evaluators.shared_model import SharedModel
from tests.ftp_core.tiny_models import CONFIGS, each, fresh_tiny, tiny

pytestmark = pytest.mark.timeout(600)


def tensors(module):
    return {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}


@pytest.mark.parametrize("name", each(CONFIGS))
def test_a_model_comes_back_bit_by_bit_without_a_copy_of_its_weights(name):
    model = tiny(name)
    shared = SharedModel(model)
    there = shared.load()
    before, after = tensors(model), tensors(there)
    assert before.keys() == after.keys() and type(there) is type(model)
    for key, tensor in before.items():
        assert torch.equal(tensor, after[key]) and tensor.dtype == after[key].dtype
        assert tensor.data_ptr() == after[key].data_ptr() or tensor.numel() == 0
    ids = torch.randint(3, 50, (2, 20))
    assert torch.equal(model(ids).logits, there(ids).logits)
    assert shared.n_bytes == sum(tensor.nbytes for tensor in {id(one): one for one in before.values()}.values())


def test_a_model_that_was_asked_for_its_hidden_states_can_be_sent():
    model = fresh_tiny()
    ids = torch.randint(3, 50, (2, 20))
    assert len(model(ids, output_hidden_states=True).hidden_states) > 1
    assert torch.equal(SharedModel(model).load()(ids).logits, model(ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.bool])
def test_tensors_of_any_type_and_shape_come_back(dtype):
    module = nn.Module()
    for name, shape in (("matrix", (3, 4)), ("number", ()), ("nothing", (0, 2))):
        module.register_buffer(name, (torch.randn(shape) > 0).to(dtype))
    module.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T, persistent=False)
    there = SharedModel(module).load()
    for name, tensor in module.named_buffers():
        other = there.get_buffer(name)
        assert other.dtype == tensor.dtype and other.shape == tensor.shape
        assert torch.equal(other.double(), tensor.double())


def test_tied_weights_stay_one():
    module = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    module[1].weight = module[0].weight
    there = SharedModel(module).load()
    assert there[1].weight is there[0].weight and isinstance(there[0].weight, nn.Parameter)
    assert there[1].bias is not there[0].bias


def test_a_model_that_cannot_be_pickled_is_an_error_that_says_so():
    module = nn.Linear(2, 2)
    module.forward = lambda x: x
    with pytest.raises(EvaluationError, match="cannot be sent to workers"):
        SharedModel(module)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memory without a file")
class TestOnOneMachine:
    @pytest.mark.parametrize("name", each(CONFIGS))
    def test_a_model_and_its_copies_are_one_memory_and_compute_what_they_did(self, name):
        model, ids = fresh_tiny(name), torch.randint(3, 50, (2, 20))
        before, logits = {key: one.clone() for key, one in tensors(model).items()}, model(ids).logits
        shared = SharedModel(model, on_one_machine=True)
        there = pickle.loads(pickle.dumps(shared)).load()
        after = tensors(there)
        for key, tensor in tensors(model).items():
            assert torch.equal(tensor, before[key]) and torch.equal(after[key], tensor), key
            assert tensor.dtype == after[key].dtype == before[key].dtype
        assert torch.equal(model(ids).logits, logits) and torch.equal(there(ids).logits, logits)
        # As many as the pickle is small.
        assert len(pickle.dumps(shared)) < len(pickle.dumps(SharedModel(model)))

    def test_what_one_process_writes_the_others_do_not_see(self):
        module = nn.Linear(4, 4)
        shared = SharedModel(module, on_one_machine=True)
        before = shared.load().weight.clone()
        with torch.no_grad():
            module.weight.zero_()
        assert torch.equal(shared.load().weight, before) and not module.weight.any()

    def test_it_is_made_once_as_long_as_the_model_lives_and_then_closed(self):
        # Of models of other tests.
        gc.collect()
        before = weights_open()
        module = nn.Linear(4, 4)
        shared = SharedModel.of(module, True)
        assert SharedModel.of(module, True) is shared and SharedModel.of(module, False) is not shared
        loaded = SharedModel.of(module, True).load()
        del module, shared
        gc.collect()
        # What was loaded stays.
        assert loaded.weight.isfinite().all()
        del loaded
        gc.collect()
        assert weights_open() == before

    def test_a_worker_that_comes_too_late_says_so(self):
        there = pickle.dumps(SharedModel(nn.Linear(4, 4), on_one_machine=True))
        gc.collect()
        with pytest.raises(OSError, match="/proc/"):
            pickle.loads(there).load()


def weights_open():
    """Number of open files of this process that are memory for weights."""
    links = [Path("/proc/self/fd") / one for one in os.listdir("/proc/self/fd")]
    return sum("ftp-search weights" in os.readlink(link) for link in links if os.path.islink(link))


@dataclass(frozen=True)
class Looking:
    """Setups whose workers tell where the tensors of models are."""

    models: tuple[SharedModel, ...]

    def start(self, device, halvings):
        return LookingWorker(tuple(model.load() for model in self.models))


@dataclass(frozen=True)
class LookingWorker:
    models: tuple[nn.Module, ...]

    def evaluate(self, task):
        # A mapping that other processes see, too, is marked s, a private one p.
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        shared = [tuple(int(end, 16) for end in line[0].split("-")) for line in maps if line[1][3] == "s"]
        held = [*tensors(self.models[task.part]).values()]
        own = torch.ones(1000)
        is_shared = [any(start <= one.data_ptr() < end for start, end in shared) for one in [*held, own]]
        total = float(sum(one.double().abs().sum() for one in held))
        return Evaluation(task, {"n": len(held), "shared": sum(is_shared), "own": is_shared[-1], "sum": total})


@pytest.fixture(scope="module")
def demo():
    return load_model("demo")


@pytest.fixture(scope="module")
def one_ray():
    """One Ray for all pools, as it takes seconds to start."""
    with cluster(None, 2):
        yield


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not tell what memory is shared")
@pytest.mark.usefixtures("one_ray")
def test_workers_have_no_weights_in_memory_of_their_own():
    model = load_model("demo").skipping.model.to(torch.bfloat16)
    expected = float(sum(one.double().abs().sum() for one in tensors(model).values()))
    # Sent to any machine, and kept on this one.
    models = tuple(SharedModel(model, on_one_machine) for on_one_machine in (False, True))
    with closing(RayPool(Looking(models), 2)) as pool:
        for number in range(5):
            for part in (0, 1):
                pool.submit(Task(SparsitySchedule.from_grid_indices([number]), part))
        n_answers = 0
        while n_answers < 10:
            for result in pool.next_results(120):
                assert result.error is None
                assert not result.metrics["own"]
                assert result.metrics["shared"] == result.metrics["n"] == len(tensors(model))
                assert np.isclose(result.metrics["sum"], expected, rtol=1e-12)
                n_answers += 1


@pytest.mark.usefixtures("one_ray")
def test_workers_find_what_a_single_process_finds(demo):
    examples = encode(demo.tokenizer, demo_examples("calibration", 8, 0), demo.skipping.context, 64)
    options = {
        "fidelities": (0.5, 1.0),
        "router": DynamicRouter(),
        "choices": True,
        "batch_size": 4,
        "prefix_bytes": 2**22,
    }
    n_blocks, rng = demo.skipping.n_blocks, np.random.default_rng(0)
    tasks = [
        Task(SparsitySchedule.from_grid_indices(rng.integers(0, 12, n_blocks).tolist()), part)
        for part in (0, 1)
        for _ in range(3)
    ]
    local = LocalEvaluator(demo.skipping, examples, **options)
    with closing(RayPool(ModelSetup(demo.skipping, examples, **options), 2)) as pool:
        for task in tasks:
            pool.submit(task)
        found = {}
        while len(found) < len(tasks):
            found |= {result.task: result for result in pool.next_results(240)}
    for task in tasks:
        expected = local.evaluate(task)
        assert found[task].error is None
        assert found[task].metrics == expected.metrics and found[task].n_tokens == expected.n_tokens


def test_workers_load_a_model_themselves_that_is_spread_over_devices(demo):
    examples = encode(demo.tokenizer, demo_examples("calibration", 6, 0), demo.skipping.context, 64)
    setup = ModelSetup(demo.skipping.protecting(2), examples, loaded_by=("demo", "float32"))
    task, threads = Task(SparsitySchedule.uniform(0.4, demo.skipping.n_blocks)), torch.get_num_threads()
    try:
        there = pickle.loads(pickle.dumps(setup)).start("cpu", 0)
    finally:
        torch.set_num_threads(threads)
    assert there.evaluate(task).metrics == LocalEvaluator(demo.skipping.protecting(2), examples).evaluate(task).metrics
    assert len(pickle.dumps(setup)) < 100_000


def test_fitted_keys_go_along_and_fit_the_same():
    model = fresh_tiny()
    keys = FittedKeys(SkippingModel(model), [tuple(range(3, 20)), tuple(range(5, 30))])
    give_fitted_keys(model, keys)
    there = SharedModel(model).load()
    again = fitted_keys_of(there)
    assert again is not keys and again.fingerprint() == keys.fingerprint()
    schedule = SparsitySchedule.of_halves([0.5, 0.3, 0.6], [0.3, 0.6, 0.5], True)
    found, expected = (of.of(SkippingModel(base), schedule) for of, base in ((again, there), (keys, model)))
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), atol=0, rtol=0)
