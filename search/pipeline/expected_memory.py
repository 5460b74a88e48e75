"""Expected memory of a run: counted before it begins, and compared with what there is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from ftp_core.cost.memory import kv_bytes, peak_activation_bytes
from ftp_core.cost.process_memory import free_bytes, own_bytes, resident_bytes
from ftp_core.loading.allocator import return_freed_memory
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.fitted_keys import fitted_keys_of
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample
from ftp_core.training.distillation_config import DistillationConfig
from ftp_core.training.memory import StepMemory
from search.config.run_config import RunConfig
from search.errors import ConfigError
from search.inputs.data import Workload, search_set
from search.stages.measure import timed_length
from studies.records.study_facts import Estimate, Memory

_EVALUATED_AT_ONCE = 16
# What a process holds on a GPU beside tensors: the context, and kernels with their workspaces.
_GPU_CONTEXT = 600 * 2**20
# Of what a process holds for a while: fragments of the allocator, and what libraries keep of their own.
_SLACK = 1.1
# The same of steps of training, whose tensors have many sizes: chosen so that the demo's estimate is near its peak.
_TRAINING_SLACK = 1.5
# What a training loads and keeps beside tensors, such as kernels that are compiled for each shape: chosen likewise.
_TRAINING_KEPT = 50 * 2**20
# Tables of tokens and words that are held at once where predictions are compared, and parts of the head in float32.
_TABLES, _HEADS = 8, 2
_GIB = 2.0**30


def memory_of(config: RunConfig, workload: Workload, stages: Collection[str] = ("search",)) -> Memory:
    """Most memory that the processes of a run hold through some stages, as far as it can be counted.

    On a CPU the weights count once, since all processes of this machine map the same memory; on a GPU, whose own memory
    this is about then, each process has them. What schedules share counts as far as trials can fill it.
    """
    model = workload.model.skipping
    device, weights = model.device, _weight_bytes(model)
    if config.device_map:
        # Parts of it are on several devices, whose memory is no one figure.
        return Memory(worker_bytes=weights, process_bytes=weights)
    # What earlier computations left in the allocator is nothing that this process needs.
    return_freed_memory()
    held, own = resident_bytes()
    if device.type == "cuda":
        held = own = _GPU_CONTEXT
        each = weights
    else:
        # Workers load the same libraries as this process did, whose pages they share with it.
        own -= own_bytes(model.model.parameters())
        own, each, held = max(0, own), 0 if device.type == "cpu" else weights, max(0, held - weights)
    batch = _Batch.of(search_set(config, workload), config.min_accuracy is not None, model.context)
    worker = _SLACK * batch.evaluated_bytes(model) + min(config.prefix_bytes, _states_bytes(config, workload))
    alone = _SLACK * _measured_bytes(config, workload, stages)
    if (keys := fitted_keys_of(model.model)) is not None:
        worker += keys.n_bytes
        alone += keys.n_bytes
    if any(stage.startswith("distill") for stage in stages):
        trained = _trained_bytes(config, workload)
        alone = max(alone, trained)
        worker = max(worker, trained) if "tune" in stages else worker
    free = None if config.ray_address else free_bytes(device)
    # A part of it is with this process already.
    available = None if free is None else free + (held + weights if device.type != "cuda" else weights)
    return Memory(
        worker_bytes=int(own + each + worker),
        process_bytes=int(held + weights),
        # Weights are copied once, to where all can map them, and read once more to be exported.
        alone_bytes=int(held + weights + max(alone, weights)),
        available_bytes=available,
        sharing=_sharing(config) if device.type == "cuda" else None,
    )


def check_memory(estimate: Estimate, config: RunConfig) -> None:
    """Raises `ConfigError` if a run is known not to fit, with the settings that would let it."""
    if not estimate.fits:
        raise ConfigError(f"The run does not fit: {memory_sentence(estimate)}. {advice(estimate, config)}")


def memory_sentence(estimate: Estimate) -> str:
    """The expected memory of a run, beside what there is."""
    memory = estimate.memory
    where = "" if memory.sharing is None else " on a GPU"
    available = "" if memory.available_bytes is None else f", of {_gib(memory.available_bytes)} that are free"
    text = (
        f"at most about {_gib(estimate.total_bytes)}{where} ({_gib(memory.process_bytes)} here and "
        f"{estimate.workers_together} x {_gib(memory.worker_bytes)} for workers"
    )
    if memory.alone_bytes > memory.process_bytes + estimate.workers_together * memory.worker_bytes:
        text += f"; {_gib(memory.alone_bytes)} here without them, for training and measuring"
    return f"{text}){available}"


def advice(estimate: Estimate, config: RunConfig) -> str:
    """The settings to change where memory is short."""
    memory, ways = estimate.memory, []
    available = memory.available_bytes or 0
    room = available - memory.process_bytes
    fitting = max(0, room // max(1, memory.worker_bytes))
    alone_fits = memory.alone_bytes <= available
    if alone_fits and 0 < fitting < estimate.workers_together:
        ways.append(f"--workers {fitting}" if memory.sharing is None else f"a --gpu-share of {1 / fitting:.2g} or more")
    if alone_fits and config.prefix_bytes > memory.worker_bytes // 10:
        ways.append("less --prefix-mb")
    if config.dtype == "float32":
        ways.append("--dtype bfloat16")
    if not alone_fits:
        ways.append("a smaller --latency-batch or --latency-length, or shorter prompts")
    return f"Give {', or '.join([*ways, 'a smaller model'])}."


def _sharing(config: RunConfig) -> int:
    """Workers that share the GPU that the model of this process is on."""
    if ":" in config.device or not torch.cuda.device_count():
        return config.workers
    n_each = int(1 / config.gpu_share + 1e-9) if config.gpu_share < 1 else 1
    return min(config.workers, n_each)


def _weight_bytes(model: SkippingModel) -> int:
    return sum(one.nbytes for one in (*model.model.parameters(), *model.model.buffers()))


@dataclass(frozen=True)
class _Batch:
    """The largest batch of evaluated examples: rows of prompts, and of what follows them."""

    prompts: tuple[int, int]
    rest: tuple[int, int]

    @classmethod
    def of(cls, examples: Sequence[EncodedExample], choices: bool, context: int) -> _Batch:
        """The largest batch of some examples; with `choices`, every choice follows its prompt."""
        n = min(_EVALUATED_AT_ONCE, len(examples))
        texts = [one.continuations if choices else (one.continuations[one.answer],) for one in examples]
        longest = max(len(text) for of_one in texts for text in of_one)
        return cls((n, min(max(len(one.prompt) for one in examples), context)), (n * max(map(len, texts)), longest))

    def held_bytes(self, model: SkippingModel) -> int:
        """Memory beside the activations: keys and values, and the tables by which predictions are compared."""
        (n, length), (rows, longest) = self.prompts, self.rest
        held = kv_bytes(model, SparsitySchedule.uniform(0.0, model.n_blocks), n, length)
        # Those of one block at a time are copied for each continuation.
        return held + 2 * rows * held // (n * model.n_blocks) + _tables_bytes(model, rows * longest)

    def evaluated_bytes(self, model: SkippingModel) -> int:
        """Most memory while the batch is evaluated."""
        return self.held_bytes(model) + _activation_bytes(model, [self.prompts, self.rest])


def _activation_bytes(model: SkippingModel, shapes: Sequence[tuple[int, int]]) -> int:
    """Peak of the activations of the largest of some batches: they grow with the tokens, or faster."""
    batch, length = max(shapes, key=lambda shape: (shape[0] * shape[1], shape[1]))
    return peak_activation_bytes(model, SparsitySchedule.uniform(0.0, model.n_blocks), batch, length)


def _tables_bytes(model: SkippingModel, n_tokens: int) -> int:
    """Memory of the tables by which the predictions of two models are compared; see `ftp_core.skipping.head`."""
    width: int = model.model.config.hidden_size
    tokens, parts = next(model.head.tiles(n_tokens, width))
    words = parts[0].stop - parts[0].start
    is_copied = model.model.dtype != torch.float32
    return int(4 * words * (_TABLES * (tokens.stop - tokens.start) + _HEADS * width * is_copied))


def _states_bytes(config: RunConfig, workload: Workload) -> int:
    """Memory of all states that a worker's share of the trials could leave behind."""
    trials = max(config.trials, config.refine_trials)
    return trials * _path_bytes(workload, search_set(config, workload)) // max(1, config.workers + config.gpu_workers)


def _held_out_states_bytes(config: RunConfig, workload: Workload) -> int:
    """Memory of the states of two routers, under the schedules that one of them is trained for."""
    states = 2 * config.router_schedules * _path_bytes(workload, workload.splits["validation"])
    return min(config.held_out_prefix_bytes, states)


def _path_bytes(workload: Workload, examples: Sequence[EncodedExample]) -> int:
    """Memory of the states that one schedule leaves behind; see `ftp_core.skipping.prefixes`."""
    model = workload.model.skipping
    n_tokens = sum(len(one.prompt) + len(one.continuations[one.answer]) for one in examples)
    width: int = model.model.config.hidden_size
    return int((model.n_blocks - 1) * n_tokens * (width * model.model.dtype.itemsize + 4))


def _trained_bytes(config: RunConfig, workload: Workload) -> float:
    """Most that a router's training holds: in a step, or while the router is evaluated on held-out examples."""
    model = workload.model.skipping
    has_halves = config.granularity == "half" or config.kv == "keep"
    step = StepMemory.of(model, workload.splits["calibration"], DistillationConfig(), has_halves).n_bytes
    held_out = _Batch.of(workload.splits["validation"], choices=False, context=model.context)
    most = max(_TRAINING_SLACK * step, _SLACK * held_out.evaluated_bytes(model))
    return most + _held_out_states_bytes(config, workload) + _TRAINING_KEPT


def _measured_bytes(config: RunConfig, workload: Workload, stages: Collection[str]) -> int:
    """Most that timed prefills, and candidates on held-out examples, hold in this process."""
    model = workload.model.skipping
    shapes, held = [(config.latency_batch, timed_length(config, workload))], 0
    for split in ("validation", "test") if "measure" in stages else ():
        batch = _Batch.of(workload.splits[split], choices=True, context=model.context)
        shapes += [batch.prompts, batch.rest]
        held = max(held, batch.held_bytes(model))
    return held + _activation_bytes(model, shapes)


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / _GIB:.1f} GiB"
