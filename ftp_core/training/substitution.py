"""Fits the low-rank maps that stand in for halves of blocks that tokens skip.

For each half of each block, and for each whole block: reduced-rank ridge regression (Izenman, 1975, "Reduced-rank
regression for the multivariate linear model") of what it adds on what it reads, over the tokens of calibration prompts
in the dense model. Nothing is trained, and nothing depends on a schedule or a router.

Dimensions: T tokens, D hidden width, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ftp_core.errors import DataError, ModelError
from ftp_core.skipping.halves import names_of_halves
from ftp_core.skipping.interception import exclusive
from ftp_core.skipping.norms import MeasuredStates
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.skipping.substitutes import LowRank, ScaledLowRank, Substitutes
from ftp_core.text.encoding import EncodedExample, pad_right

# Of the mean variance of what a half reads: few prompts leave most directions of it undecided.
_RIDGE = 0.03
# Prompts of one pass, and bytes of the sums that are kept at once; what does not fit takes more passes.
_AT_A_TIME, _MOST_BYTES = 8, 2**30


@dataclass
class _Sums:
    """Sums over tokens, in float32, of which a regression is made."""

    n_tokens: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    shifts: tuple[Tensor, Tensor] | None = None

    def add(self, read_TD: Tensor, added_TD: Tensor) -> None:
        """Adds tokens, in float32."""
        if self.shifts is None:
            # About where the means are, so that little is lost where squares of them are taken away.
            self.shifts = read_TD.mean(0), added_TD.mean(0)
        read_TD, added_TD = read_TD - self.shifts[0], added_TD - self.shifts[1]
        parts = {
            "read": read_TD.sum(0),
            "added": added_TD.sum(0),
            "read_read": read_TD.T @ read_TD,
            "read_added": read_TD.T @ added_TD,
        }
        self.sums = {name: part + self.sums.get(name, 0.0) for name, part in parts.items()}
        self.n_tokens += len(read_TD)

    def fit(self, substitute: LowRank) -> None:
        """Sets the weights of the map with the least squared error of its rank."""
        assert self.shifts is not None
        mean_D, mean_added_D = self.sums["read"] / self.n_tokens, self.sums["added"] / self.n_tokens
        covariance_DD = self.sums["read_read"] / self.n_tokens - torch.outer(mean_D, mean_D)
        cross_DD = self.sums["read_added"] / self.n_tokens - torch.outer(mean_D, mean_added_D)
        ridge = _RIDGE * covariance_DD.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
        covariance_DD.diagonal().add_(ridge)
        full_DD = torch.linalg.solve(covariance_DD, cross_DD)
        # Of all rank-R maps, the one whose outputs keep the most of those of the full one.
        rank = substitute.up.shape[1]
        kept_DR = torch.linalg.eigh(cross_DD.T @ full_DD).eigenvectors[:, -rank:]
        kept_DR = nn.functional.pad(kept_DR, (0, rank - kept_DR.shape[1]))
        down_DR = full_DD @ kept_DR
        mean_D, mean_added_D = mean_D + self.shifts[0], mean_added_D + self.shifts[1]
        weights = {"down": down_DR.T, "up": kept_DR, "bias": mean_added_D - kept_DR @ (down_DR.T @ mean_D)}
        substitute.load_state_dict({name: weight.to(substitute.bias.dtype) for name, weight in weights.items()})


# Routers are trained through them, so that they must be no inference tensors.
@torch.no_grad()
def fit_substitutes(
    model: SkippingModel, examples: Sequence[EncodedExample], rank: int, on_pass: Callable[[], None] = lambda: None
) -> Substitutes:
    """Fits maps that stand in for what tokens skip.

    Args:
        model: The dense model.
        examples: Examples whose prompts are run; the first token of each, which never skips, does not count.
        rank: R.
        on_pass: Called `n_passes(...)` times, as batches of prompts have run.

    Returns:
        The maps, on the CPU, in the precision of the model.

    Raises:
        DataError: No prompt has a token that could skip.
        ModelError: The rank is not from 1 to the model's width, or its blocks have other parts than attention and MLP.
    """
    config = model.model.config
    names = names_of_halves(model.family, config.model_type)
    width = config.hidden_size
    if not 1 <= rank <= width:
        raise ModelError(f"The rank of substitutes is {rank}: expected one from 1 to the model's width, {width}.")
    # Always in the same order, so that a study that goes on gets the same sums.
    prompts = sorted({one.prompt for one in examples if len(one.prompt) > 1}, key=lambda row: (len(row), row))
    check_prompts(examples)
    made = Substitutes(model.n_blocks, width, rank, model.model.dtype)
    for first in range(0, model.n_blocks, step := _blocks_at_once(model)):
        indices = range(first, min(first + step, model.n_blocks))
        # What each map stands in for: the halves, and the block itself.
        fitted = [
            (substitute, model.blocks[index].get_submodule(name), _Sums())
            for index in indices
            for substitute, name in zip(made.of(index), (*names, ""), strict=True)
        ]
        for begin in range(0, len(prompts), _AT_A_TIME):
            rows = prompts[begin : begin + _AT_A_TIME]
            # Padding stands last, where causality hides it from every token.
            ids_BL = pad_right(rows, 0).to(model.device)
            lengths_B = torch.tensor([len(row) for row in rows], device=model.device)
            counts_BL = torch.arange(ids_BL.shape[1], device=model.device) < lengths_B[:, None]
            # The first token is like no other: attention rests on it, and its states are huge.
            counts_BL[:, 0] = False
            hooks = [
                module.register_forward_hook(
                    _adding(sums, counts_BL, isinstance(substitute, ScaledLowRank)), with_kwargs=True
                )
                for substitute, module, sums in fitted
            ]
            try:
                with exclusive(model.blocks):
                    model.decoder(input_ids=ids_BL, use_cache=False)
            finally:
                for hook in hooks:
                    hook.remove()
            on_pass()
        for substitute, _, sums in fitted:
            sums.fit(substitute)
    return made


def check_prompts(examples: Sequence[EncodedExample]) -> None:
    """Raises `DataError` if maps cannot be fitted to examples."""
    if all(len(example.prompt) < 2 for example in examples):
        raise DataError("No prompt has a second token, so that nothing could skip: give longer prompts.")


def n_passes(model: SkippingModel, examples: Sequence[EncodedExample]) -> int:
    """Number of batches that `fit_substitutes` runs."""
    n_prompts = len({example.prompt for example in examples if len(example.prompt) > 1})
    return -(-model.n_blocks // _blocks_at_once(model)) * -(-n_prompts // _AT_A_TIME)


def _blocks_at_once(model: SkippingModel) -> int:
    bytes_of_block: int = 3 * 2 * 4 * model.model.config.hidden_size**2
    return max(1, _MOST_BYTES // bytes_of_block)


def _adding(sums: _Sums, counts_BL: Tensor, is_block: bool) -> Callable[..., None]:
    def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        read_BLD = args[0] if args else kwargs["hidden_states"]
        out = output[0] if isinstance(output, tuple) else output
        counts = counts_BL.to(read_BLD.device)
        read_TD, added_TD = read_BLD[counts].float(), out.reshape(read_BLD.shape)[counts].float()
        if is_block:
            # What goes into a block comes out of it, too.
            added_TD = added_TD - read_TD
            read_TD = read_TD * MeasuredStates(read_TD).inverse_root_mean_square()
        sums.add(read_TD, added_TD)

    return add
