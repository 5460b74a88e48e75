"""Measurements of schedules: quality on held-out examples, and time."""

from __future__ import annotations

from dataclasses import dataclass

from studies.records.halves import overall


@dataclass(frozen=True)
class Measurement:
    """Measured quality and speed of a schedule with a router.

    Attributes:
        variant: Schedule and router that ran: "dense"; "uniform" (the same sparsity in every block with the static
            router, which is a shorter prompt, at about the selected point's FLOPs); "static" (a schedule that the first
            search found, with its static router); "dynamic" (that schedule with the first distilled router); "refined"
            (what a refinement found); "candidate" (a point of the front, whichever router it has).
        trial: Number of the trial whose schedule it is; None for dense and uniform.
        schedule: Share of tokens skipped, one per block.
        kl: Mean KL(dense || pruned) per completion token, nats.
        perplexity: Perplexity of the completions.
        accuracy: Share of multiple-choice items answered right; None if the data has no choices.
        accuracy_low: Lower end of its 95 % Wilson interval.
        accuracy_high: Upper end of its 95 % Wilson interval.
        n_items: Items that quality was computed on.
        latency_ms: Median of the timed runs, one prefill of `batch` rows of `length` tokens.
        latency_low_ms: First quartile of the timed runs.
        latency_high_ms: Third quartile of the timed runs.
        repeats: Number of timed runs.
        batch: Rows of the timed input.
        length: Tokens in each row of the timed input.
        flops: FLOPs of the timed input, the router's own included.
        n_choice_items: Multiple-choice items that accuracy was counted on.
        kv_bytes: Bytes of the keys and values that the timed input leaves behind.
        split: Examples of the quality: "validation" for what selection may see, "test" for the report.
        router: Number of the study's router that decided (`RouterRun.number`); None for the static router.
        kl_low: Lower end of the 95 % bootstrap interval of `kl` over items; None if it has none.
        kl_high: Upper end of it.
        perplexity_low: Lower end of the 95 % bootstrap interval of `perplexity` over items.
        perplexity_high: Upper end of it.
        peak_bytes: Predicted peak memory of the timed prefill's activations; None if unknown.
        speedup: Median over the timed turns of the dense model's time by the variant's in the same turn. Of "dense" it
            is what the dense model came to against itself, timed once more in every turn: 1, but for what disturbed
            the clock. None if its latency was predicted, not timed.
        speedup_low: Lower end of its distribution-free 95 % interval; None where there were fewer than six turns.
        speedup_high: Upper end of it.
    """

    variant: str
    trial: int | None
    schedule: tuple[float, ...]
    kl: float
    perplexity: float
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    n_items: int
    latency_ms: float
    latency_low_ms: float
    latency_high_ms: float
    repeats: int
    batch: int
    length: int
    flops: float
    n_choice_items: int = 0
    kv_bytes: int | None = None
    split: str = "test"
    router: int | None = None
    kl_low: float | None = None
    kl_high: float | None = None
    perplexity_low: float | None = None
    perplexity_high: float | None = None
    peak_bytes: int | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None

    @property
    def overall_sparsity(self) -> float:
        """Mean of the schedule."""
        return overall(self.schedule)

    def retention(self, dense: Measurement | None) -> float | None:
        """Share of the dense model's quality: the ratio of accuracies, or without choices that of perplexities.

        Args:
            dense: The dense model, measured on the same examples.

        Returns:
            The share; None where the dense model was not measured, has nothing right, or only one of both has choices.
        """
        if dense is None:
            return None
        if self.accuracy is None and dense.accuracy is None:
            return dense.perplexity / self.perplexity
        return self.accuracy / dense.accuracy if self.accuracy is not None and dense.accuracy else None
