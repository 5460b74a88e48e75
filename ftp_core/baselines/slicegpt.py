"""SliceGPT: rotates hidden states to their principal components, and slices the smallest ones off all projections.

Dimensions: B rows, L tokens of a row, D hidden width, S width of sliced states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ftp_core.baselines.fitting import Effort, closest, text_batches
from ftp_core.baselines.projections import (
    INTO_CHANNELS,
    INTO_HEADS,
    OUT_OF_CHANNELS,
    OUT_OF_HEADS,
    check_projections,
    projection,
)
from ftp_core.baselines.protocol import Budget, Sparsity
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.baselines.sharing import StandsIn, set_block, shared_copy
from ftp_core.checks import is_plain
from ftp_core.cost.flops import FlopsCounter
from ftp_core.errors import ModelError
from ftp_core.schedule import BlockSparsity, SparsitySchedule
from ftp_core.skipping.interception import BlockCall
from ftp_core.skipping.norms import epsilon_of, root_mean_square_norms
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample, PromptBatch

_NORMS = ("input_layernorm", "post_attention_layernorm")
# Tokens by which blocks are compared with Llama's.
_N_COMPARED = 8


class SliceGPT:
    """Deletes rows and columns of all projections after a rotation that puts what hidden states hold least of last.

    A root mean square norm without its scale commutes with rotations Q, and scales are fused into the projections
    behind it. The states before attention and before the MLP of each block have a rotation of their own: the
    eigenvectors of sum x^T x, by descending eigenvalue, over all tokens of the calibration texts as they come out of
    the halves that are sliced already (in float64; all else in the model's type). W_in becomes Q_l^T diag(g) W_in,
    W_out becomes W_out Q_{l+1}, and the residual connection Q_l^T Q_{l+1}; of each all but the first S components are
    deleted, of embeddings, too, so that S meets the budget, with the operations of the residual maps. As in the
    authors' program norms still divide by D, S is a multiple of 8 and the same everywhere, and the final states are
    whole; here they are not rotated either, since nothing is deleted from the head. The paper's recovery by LoRA is
    left out. The calibration texts must have many times D tokens: directions that they do not show are sliced off.

    Args:
        multiple: Number that S is a multiple of.

    Raises:
        ModelError: It is no positive number.
    """

    name = "slicegpt"
    paper = "SliceGPT: Compress Large Language Models by Deleting Rows and Columns (arXiv 2401.15024)"
    has_chance = False
    trains = False

    def __init__(self, multiple: int = 8) -> None:
        if multiple < 1:
            raise ModelError(f"SliceGPT is to leave a multiple of {multiple} components: give at least 1.")
        self._multiple = multiple

    def fit(
        self,
        model: SkippingModel,
        calibration: Sequence[EncodedExample],
        budget: Budget,
        seed: int = 0,
        on_step: Callable[[float], None] = lambda share: None,
    ) -> ScheduledModel:
        """See `Baseline`."""
        effort, texts = Effort(model), text_batches(model, calibration)
        check_sliceable(model, texts[0].ids[:1, :_N_COMPARED])
        whole: int = model.model.config.hidden_size
        widths = [whole, *range((whole - 1) // self._multiple * self._multiple, 0, -self._multiple)]
        width = closest(widths, flops_by_width(model, budget), budget.target_flops(model))
        pruned = model
        if width < whole:
            pruned = sliced(model, texts, width, on_step)
            effort.tokens += sum(int(batch.lengths.sum()) for batch in texts)
        on_step(1.0)
        return ScheduledModel(
            self.name,
            model,
            pruned,
            SparsitySchedule.uniform(0.0, model.n_blocks),
            Sparsity(1.0 - width / whole, "of the hidden width sliced off"),
            effort.preparation(),
        )


def flops_by_width(model: SkippingModel, budget: Budget) -> Callable[[int], float]:
    """Operations of the prefill that a budget is of, by the width of its states; the dense ones at the whole width."""
    counter, dense = FlopsCounter(model), budget.dense_flops(model)
    whole: int = model.model.config.hidden_size
    counted = [
        counter.of_block(index, BlockSparsity(0.0, 0.0), budget.batch, budget.length) for index in range(model.n_blocks)
    ]
    of_projections = sum(block.projections + block.mlp for block in counted)

    def flops_of(width: int) -> float:
        if width == whole:
            return dense
        last = model.blocks[-1].get_submodule(f"mlp.{OUT_OF_CHANNELS}")
        assert isinstance(last, nn.Linear)
        # The last half writes whole states.
        added = 2 * model.n_blocks * width**2 + (width + last.in_features) * (whole - width)
        return dense - of_projections * (1 - width / whole) + 2.0 * budget.batch * budget.length * added

    return flops_of


class RootMeanSquare(nn.Module):
    """Divides sliced states by the root mean square of the whole ones, the deleted components being 0.

    Args:
        width: D.
        epsilon: Added to the mean square.
    """

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self._width, self._epsilon = width, epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns `[..., S]`."""
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        mean_square = wide.square().sum(-1, keepdim=True) / self._width
        return (wide * torch.rsqrt(mean_square + self._epsilon)).to(hidden.dtype)


class SlicedHalf(nn.Module):
    """Attention or MLP with its norm and residual connection, on which there is a map: x M + half(norm(x)).

    Until it is told to read or write another basis it computes what it does in the block that it was taken from.

    Args:
        part: Attention or MLP.
        norm: Norm before it.
        into: Names of its projections that read states.
        out: Name of the one that writes them.
    """

    def __init__(self, part: nn.Module, norm: nn.Module, into: Sequence[str], out: str) -> None:
        super().__init__()
        self.part, self.norm = part, norm
        self.residual: nn.Module = nn.Identity()
        self._into, self._out = into, out

    def forward(self, hidden: Tensor, **arguments: Any) -> Tensor:
        """Runs it with whatever arguments it takes beside hidden states."""
        found = self.part(self.norm(hidden), **arguments)
        added: Tensor = found[0] if isinstance(found, tuple) else found
        residual: Tensor = self.residual(hidden)
        return residual + added

    def read(self, basis_DS: Tensor) -> None:
        """Lets it read states in a basis, and write them in the original one."""
        scale_D = self.norm.get_parameter("weight")
        for name in self._into:
            linear = self.part.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            weight = (linear.weight.to(basis_DS.dtype) * scale_D) @ basis_DS
            setattr(self.part, name, projection(weight.to(linear.weight.dtype), linear.bias))
        self.norm = RootMeanSquare(len(basis_DS), epsilon_of(self.norm))
        self.residual = projection(basis_DS.to(scale_D.dtype))

    def write(self, read_DS: Tensor, basis_DS: Tensor) -> None:
        """Lets it write states in a basis, too.

        Args:
            read_DS: The basis that it reads.
            basis_DS: The one to write.
        """
        linear = self.part.get_submodule(self._out)
        assert isinstance(linear, nn.Linear)
        dtype, own_bias = linear.weight.dtype, linear.bias
        weight = basis_DS.T @ linear.weight.to(basis_DS.dtype)
        bias = None if own_bias is None else (own_bias.to(basis_DS.dtype) @ basis_DS).to(dtype)
        setattr(self.part, self._out, projection(weight.to(dtype), bias))
        self.residual = projection((basis_DS.T @ read_DS).to(dtype))


class SlicedBlock(StandsIn):
    """A block of Llama's kind as two halves that can read and write sliced states."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__(block)
        first, second = map(block.get_submodule, _NORMS)
        self.attention = SlicedHalf(block.get_submodule("self_attn"), first, INTO_HEADS, OUT_OF_HEADS)
        self.mlp = SlicedHalf(block.get_submodule("mlp"), second, INTO_CHANNELS, OUT_OF_CHANNELS)

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        """Returns the states behind it `[B, L, S]`, of the last block `[B, L, D]`."""
        out: Tensor = self.mlp(self.attention(hidden_states, **arguments))
        return out


def check_sliceable(model: SkippingModel, ids_1L: Tensor) -> None:
    """Raises `ModelError` unless a model is of Llama's kind.

    Args:
        model: The model.
        ids_1L: Some tokens to find out with.
    """
    kind, embedding = model.model.config.model_type, model.model.get_input_embeddings()
    for index, block in enumerate(model.blocks):
        check_projections(model, index, "SliceGPT")
        expected = {*_NORMS, "self_attn", "mlp"}
        norms = {id(norm) for norm in root_mean_square_norms(block)}
        children = dict(block.named_children())
        if set(children) != expected or not all(id(children[name]) in norms for name in _NORMS):
            raise ModelError(
                f"SliceGPT rotates states before root mean square norms, one before the attention and one before the "
                f"MLP, but block {index} of this {kind} model has others: it needs a family with those of Llama."
            )
    if type(embedding) is not nn.Embedding or not is_plain(embedding.weight):
        raise ModelError(f"SliceGPT cannot rotate the embeddings of this {kind} model: they are no plain table.")
    blocks = [SlicedBlock(block) for block in model.blocks]

    def compare(index: int, call: BlockCall) -> Tensor:
        own, as_llama = call.run(call.hidden), blocks[index](call.hidden, **call.arguments)
        if not torch.allclose(own.float(), as_llama.float(), rtol=1e-2, atol=1e-2 * float(own.abs().max())):
            raise ModelError(
                f"SliceGPT puts maps on residual connections, but block {index} of this {kind} model does not just add "
                "its attention and its MLP to the states: it needs a family whose blocks compute what Llama's do."
            )
        return own

    with torch.no_grad():
        model.run(compare, ids_1L, use_cache=False)


@dataclass
class _Signals:
    """States of some texts on their way through the blocks.

    Attributes:
        states: Hidden states `[B, L, D]`.
        real: Tells tokens from padding `[B, L]`.
        arguments: Other arguments of each block.
    """

    states: Tensor
    real: Tensor
    arguments: list[dict[str, Any]]


@torch.no_grad()
def sliced(
    model: SkippingModel, texts: Sequence[PromptBatch], width: int, on_step: Callable[[float], None]
) -> SkippingModel:
    """The model with states of a width; with the whole one it computes the same but for rounding.

    Args:
        model: A model that `check_sliceable` lets pass.
        texts: Calibration texts.
        width: S.
        on_step: See `Baseline.fit`.
    """
    pruned, dtype = shared_copy(model), model.model.dtype
    signals = [_before_blocks(model, batch) for batch in texts]
    basis_DS = principal_components(signals)[:, :width]
    embedding = pruned.model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    table_VS = (embedding.weight.to(basis_DS.dtype) @ basis_DS).to(dtype)
    pruned.model.set_input_embeddings(nn.Embedding.from_pretrained(table_VS, padding_idx=embedding.padding_idx))
    # The head, which reads whole states, is the dense one.
    pruned.model.config.tie_word_embeddings = False
    for index in range(model.n_blocks):
        block = SlicedBlock(pruned.blocks[index])
        set_block(pruned, index, block)
        for half in (block.attention, block.mlp):
            half.read(basis_DS)
            for each in signals:
                arguments = each.arguments[index] if half is block.attention else {}
                each.states = half(each.states @ basis_DS.to(dtype), **arguments)
            if index == model.n_blocks - 1 and half is block.mlp:
                break
            following_DS = principal_components(signals)[:, :width]
            half.write(basis_DS, following_DS)
            basis_DS = following_DS
        on_step((index + 1) / model.n_blocks)
    return pruned


def _before_blocks(model: SkippingModel, texts: PromptBatch) -> _Signals:
    """What the first block gets, and whatever else each gets."""
    calls: list[BlockCall] = []

    def record(_: int, call: BlockCall) -> Tensor:
        calls.append(call)
        return call.hidden

    model.run(record, texts.ids, use_cache=False)
    real_BL = torch.arange(texts.ids.shape[1], device=model.device) < texts.lengths[:, None]
    return _Signals(calls[0].hidden, real_BL, [call.arguments for call in calls])


def principal_components(signals: Sequence[_Signals]) -> Tensor:
    """Eigenvectors of the sum of x^T x over all real tokens, by descending eigenvalue `[D, D]`.

    They are computed in float64, and returned in float32 at least.
    """
    moments_DD: Any = sum(rows.T @ rows for rows in (each.states[each.real].double() for each in signals))
    eigenvectors: Tensor = torch.linalg.eigh(moments_DD).eigenvectors
    return eigenvectors.flip(1).to(torch.promote_types(signals[0].states.dtype, torch.float32))
