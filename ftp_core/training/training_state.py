"""The state of a router's training, as a file from which it goes on as if it had not stopped."""

from __future__ import annotations

import json
import math
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ftp_core.errors import CoreError
from ftp_core.routers import ScoringRouter

_METADATA = "training_state"


@dataclass
class TrainingState:
    """Progress of a training run, and its random state."""

    rng: random.Random  # random source of the order of lessons
    curves: dict[str, list[float]]  # see `Distillation.curves`
    order: list[int] = field(default_factory=list)  # lessons left of this epoch
    step: int = 0  # optimizer steps done
    tokens: int = 0  # tokens seen
    best_kl: float = math.inf  # lowest held-out KL so far
    seconds: float = 0.0  # time taken

    def add(self, **entries: float) -> None:
        """Append to curves."""
        for name, value in entries.items():
            self.curves[name].append(value)

    def next_lesson(self, n_lessons: int) -> int:
        """Index of the next lesson: each once an epoch, in an order drawn anew."""
        if not self.order:
            self.order = list(range(n_lessons))
            self.rng.shuffle(self.order)
        return self.order.pop()

    def save(
        self, path: Path, fingerprint: str, router: ScoringRouter, optimizer: torch.optim.Optimizer, best: ScoringRouter
    ) -> None:
        """Write everything, torch's random state included, to a safetensors file that appears at once or not at all."""
        tensors = {f"router.{name}": tensor for name, tensor in router.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in best.state_dict().items()}
        for number, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
        tensors["torch_rng"] = torch.get_rng_state()
        facts = {"fingerprint": fingerprint, **vars(self), "rng": self.rng.getstate()}
        partial = path.with_name(f".{path.name}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, partial, metadata={_METADATA: json.dumps(facts)})
        os.replace(partial, path)

    def load(
        self, path: Path, fingerprint: str, router: ScoringRouter, optimizer: torch.optim.Optimizer
    ) -> dict[str, Tensor]:
        """Take over what `save` wrote.

        Returns:
            The weights of the best router so far.

        Raises:
            CoreError: The file is no checkpoint, or one of a run with other settings, model, data or initial router.
        """
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()[_METADATA])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
            raise CoreError(
                f"{path} is not a checkpoint of a distillation ({error}): remove it to start anew."
            ) from error
        if facts["fingerprint"] != fingerprint:
            raise CoreError(
                f"{path} is the checkpoint of a distillation with another configuration, model, data, held-out set, "
                "schedule or initial router: give the same as then, or remove it to start anew."
            )
        version, numbers, gauss = facts["rng"]
        self.rng.setstate((version, tuple(numbers), gauss))
        for name in ("order", "curves", "step", "tokens", "best_kl", "seconds"):
            setattr(self, name, facts[name])
        router.load_state_dict(_part(tensors, "router."))
        state = optimizer.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _part(tensors, "optimizer.").items():
            number, moment = name.split(".", 1)
            moments.setdefault(int(number), {})[moment] = tensor
        optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})
        torch.set_rng_state(tensors["torch_rng"])
        return _part(tensors, "best.")


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
