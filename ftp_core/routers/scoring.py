"""Routers that learn: they score tokens, and keep the highest or those above a threshold.

Dimensions: B rows, L tokens of a row, F features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ftp_core.errors import ModelError
from ftp_core.routers.protocol import highest
from ftp_core.routers.state import RoutingState
from ftp_core.schedule import SparsitySchedule

DEFAULT_WINDOW = 32
HIDDEN_WIDTH = 64
FEATURES = ("position", "attention", "attention_rank", "block_sparsity")
FEATURES_OF_HALVES = (*FEATURES, "half")
# What the feature "half" says.
_HALVES = {"attention": 0.0, "block": 0.5, "mlp": 1.0}
_LONGEST_STATIC = 10_000.0
# Large enough that the first steps of a training do not undo where it starts, small enough that the next ones can.
SHARPNESS = 2.0
_LISTENING = ("attention", "attention_rank")


class ScoringRouter(nn.Module):
    """A router that scores tokens.

    In mode `budget` it keeps exactly the row's kept count of highest scores. With thresholds it keeps the tokens with
    sigmoid(z) > tau_i: about as many, more where a prompt has more that matters (mode `threshold`). Protected tokens
    (see `RoutingState.protected`) are kept in either mode, whatever their scores.

    Attributes:
        window: See `Router.window`.
        options: Keyword arguments that it was made with.
        trained_for: Identity of the model that it was distilled for (`ftp_core.loading.identity`); None before that.
        thresholds: logit(tau) of each block, to be compared with z itself, as sigmoid(z) is 1 for many a z in float32;
            where the schedule tells halves apart, of the attention of each, then of the MLP of each. None in mode
            `budget`.
        n_scored_once: See `ftp_core.routers.protocol.scored_once`.
        threshold_schedule: The schedule that the thresholds meet.
    """

    kind: ClassVar[str]
    window = 0
    options: dict[str, Any]
    reads_hidden = False
    routes_decoding = True
    n_scored_once = 0

    def __init__(self) -> None:
        super().__init__()
        self.trained_for: str | None = None
        self.thresholds: tuple[float, ...] | None = None
        self.threshold_schedule: SparsitySchedule | None = None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # A router decides by comparing scores, and half precision would make many of them equal: whatever becomes of
        # the model's weights, its own stay in float32.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for parameter in self.parameters():
            parameter.data = parameter.data.float()
        return self

    @abstractmethod
    def scores(self, sparsity: float, state: RoutingState) -> Tensor:
        """Scores z of all tokens `[B, L]`, or of the last one `[B, 1]` if `state.newest_only`."""

    def start_as_static(self) -> bool:
        """Sets weights that decide as the static router does and can be trained on; False if there are none."""
        return False

    @property
    def score_flops(self) -> float:
        """Floating-point operations of the score of one token: two per weight of its matrices, which all take part."""
        return 2.0 * sum(parameter.numel() for parameter in self.parameters() if parameter.ndim == 2)

    @property
    def keeps_budget(self) -> bool:
        """See `Router.keeps_budget`."""
        return self.thresholds is None

    def keep(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `Router.keep`."""
        return self.select(self.scores(sparsity, state), sparsity, state)

    def keep_newest(self, sparsity: float, state: RoutingState, line: Tensor | None) -> Tensor:
        """See `Router.keep_newest`: one score, compared with the prompt's line or the threshold."""
        if self.thresholds is not None:
            return self.scores(sparsity, state)[:, 0] > self._threshold(state)
        if line is None:
            return torch.ones_like(state.lengths, dtype=torch.bool)
        return self.scores(sparsity, state)[:, 0] >= line

    def select(self, scores_BL: Tensor, sparsity: float, state: RoutingState) -> Tensor:
        """The decision of `keep` on given scores, bool `[B, L]`."""
        if self.keeps_budget:
            return highest(scores_BL, sparsity, state)
        above_BL = (scores_BL > self._threshold(state)) & state.real
        best_B1 = scores_BL.masked_fill(~state.real, -torch.inf).argmax(1, keepdim=True)
        kept_BL, protected_BL = above_BL.scatter(1, best_B1, True), state.protected(sparsity)
        return kept_BL if protected_BL is None else kept_BL | protected_BL

    def _threshold(self, state: RoutingState) -> float:
        """The threshold of what is to be decided."""
        assert self.thresholds is not None
        schedule = self.threshold_schedule
        of_mlps = schedule.n_blocks if state.half == "mlp" and schedule is not None and not schedule.is_plain else 0
        return self.thresholds[of_mlps + state.block]

    def set_thresholds(self, thresholds: Sequence[float] | None, schedule: Sequence[float] | None) -> None:
        """Switches to mode `threshold`, with `thresholds` that meet a schedule, or with None back to `budget`."""
        self.thresholds = None if thresholds is None else tuple(float(tau) for tau in thresholds)
        self.threshold_schedule = None if schedule is None else SparsitySchedule.of(schedule)

    def check_model(self, n_blocks: int, hidden_size: int) -> None:
        """Raises `ModelError` if the router does not fit a model of N blocks and width D."""
        if self.thresholds is None:
            return
        has_halves = self.threshold_schedule is not None and not self.threshold_schedule.is_plain
        if len(self.thresholds) != n_blocks * (2 if has_halves else 1):
            halves = ", and its schedule tells halves apart" if has_halves else ""
            raise ModelError(
                f"The router has {len(self.thresholds)} thresholds, but the model has {n_blocks} blocks{halves}: "
                "calibrate it for this model."
            )

    def check_schedule(self, schedule: Sequence[float]) -> None:
        """Raises `ModelError` if the thresholds were calibrated for another schedule."""
        if self.thresholds is not None and SparsitySchedule.of(schedule) != self.threshold_schedule:
            raise ModelError(
                f"The router's thresholds were calibrated for the schedule {self.threshold_schedule}, not for "
                f"{schedule}: calibrate them again, or go back to mode budget with set_thresholds(None, None)."
            )


def check_window(window: int) -> None:
    """Raises `ModelError` for a window without a query."""
    if window < 1:
        raise ModelError(f"A router's window is {window}, but must be at least 1: the queries that it listens to.")


def mlp(n_features: int, n_scores: int = 1) -> nn.Sequential:
    """Network of a router: F -> 64 -> 1, or as many scores of each token as are given."""
    return nn.Sequential(nn.Linear(n_features, HIDDEN_WIDTH), nn.ReLU(inplace=True), nn.Linear(HIDDEN_WIDTH, n_scores))


def decide_as_static(network: nn.Sequential, features: Sequence[str]) -> None:
    """Makes a network of `mlp` score as the static router decides.

    Three hidden units compute z = 2 (position - sparsity), and 4 more for the first token: positive for about the
    tokens that the static router keeps, and highest for the first and the most recent ones. The other hidden units keep
    their weights and start without a say, so that training can give them one.

    Args:
        network: The network.
        features: Its first inputs; others that it may have start without a say, too.
    """
    hidden, out = network[0], network[2]
    assert isinstance(hidden, nn.Linear)
    assert isinstance(out, nn.Linear)
    position = list(features).index("position")
    with torch.no_grad():
        hidden.weight[:3], hidden.bias[:3] = 0.0, 0.0
        out.weight.zero_()
        out.bias.zero_()
        hidden.weight[0, position], out.weight[:, 0] = 1.0, SHARPNESS
        if "block_sparsity" in features:
            hidden.weight[1, list(features).index("block_sparsity")], out.weight[:, 1] = 1.0, -SHARPNESS
        # Positive for position 0 alone.
        hidden.weight[2, position], hidden.bias[2], out.weight[:, 2] = -_LONGEST_STATIC, 1.0, 2 * SHARPNESS


def token_features(names: Sequence[str], sparsity: float, state: RoutingState) -> Tensor:
    """Features of every token, each in [0, 1] `[B, L, F]` (FTP, arXiv 2412.11494, section 3.3).

    Of the last token alone `[B, 1, F]` if `state.newest_only`: decoding then costs no network on every token of the
    row, only the comparisons that a rank takes.

    Args:
        names: Features among `FEATURES_OF_HALVES`: position j / (L - 1); attention received; the rank of that attention
            / L; the sparsity; which half is decided, 0 for the attention, 1 for the MLP, 0.5 for both as one.
        sparsity: Sparsity of the block, or of that half.
        state: State of the prompts.
    """
    newest = state.newest_only
    features_BLF = torch.empty(
        len(state.real), 1 if newest else state.real.shape[1], len(names), device=state.real.device
    )
    for column, name in enumerate(names):
        if name == "position":
            features_BLF[..., column] = (state.lengths > 1)[:, None] if newest else state.relative_positions
        elif name == "attention":
            features_BLF[..., column] = state.attention[:, -1:] if newest else state.attention
        elif name == "attention_rank":
            rank_BL = _newest_rank(state) if newest else _ranks(state)
            features_BLF[..., column] = (rank_BL / state.lengths[:, None]).clamp_(max=1)
        else:
            features_BLF[..., column] = sparsity if name == "block_sparsity" else _HALVES[state.half]
    return features_BLF


def _ranks(state: RoutingState) -> Tensor:
    # Padding is pushed behind every real token, so that it does not shift their ranks.
    attention_BL = state.attention if state.is_rectangular else state.attention.masked_fill(~state.real, -1.0)
    order_BL = attention_BL.argsort(dim=-1, descending=True, stable=True)
    return torch.empty_like(state.columns).scatter_(1, order_BL, state.columns)


def _newest_rank(state: RoutingState) -> Tensor:
    # Of equal ones the earlier ranks first, and all others are earlier.
    return ((state.attention >= state.attention[:, -1:]) & state.real)[:, :-1].sum(1, keepdim=True)


class DynamicRouter(ScoringRouter):
    """FTP's router: one MLP, 4 -> 64 -> 1, shared by all blocks, on four features of a token.

    Args:
        window: Number of last queries of the row that the attention features listen to (W).
        features: Features that it sees: `FEATURES_OF_HALVES` for schedules that tell halves apart, fewer than the
            paper's for ablations.

    Raises:
        ModelError: A feature is unknown, or there is none.
    """

    kind = "dynamic"

    def __init__(self, window: int = DEFAULT_WINDOW, features: Sequence[str] = FEATURES) -> None:
        super().__init__()
        check_window(window)
        if not features or any(name not in FEATURES_OF_HALVES for name in features):
            raise ModelError(
                f"A dynamic router needs some of the features {', '.join(FEATURES_OF_HALVES)}; given were "
                f"{', '.join(features) or 'none'}."
            )
        self.window = window if any(name in _LISTENING for name in features) else 0
        self.options = {"window": window, "features": list(features)}
        self.features = tuple(features)
        self.mlp = mlp(len(self.features))

    @classmethod
    def static(cls, window: int = DEFAULT_WINDOW, features: Sequence[str] = FEATURES) -> DynamicRouter:
        """A router that decides as the static one does, for rows of up to 10,000 tokens; no training needed."""
        router = cls(window, features)
        with torch.no_grad():
            for parameter in router.parameters():
                parameter.zero_()
        router.start_as_static()
        return router

    def start_as_static(self) -> bool:
        """See `ScoringRouter.start_as_static`; it needs the position among the features."""
        if "position" not in self.features:
            return False
        decide_as_static(self.mlp, self.features)
        return True

    def scores(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `ScoringRouter.scores`."""
        scores_BL: Tensor = self.mlp(token_features(self.features, sparsity, state)).squeeze(-1)
        return scores_BL
