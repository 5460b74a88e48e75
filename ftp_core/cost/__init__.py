"""What a schedule costs: FLOPs and memory counted, latency predicted from a profile, latency measured."""

from ftp_core.cost.flops import prefill_flops
from ftp_core.cost.profile import LatencyProfile, profile_conditions
from ftp_core.cost.profiling import profile_latency
from ftp_core.cost.timing import Latency, measure_latency, timing_batch

__all__ = [
    "Latency",
    "LatencyProfile",
    "measure_latency",
    "prefill_flops",
    "profile_conditions",
    "profile_latency",
    "timing_batch",
]
