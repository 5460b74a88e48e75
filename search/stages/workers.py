"""Starts the workers that evaluate schedules of a study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ftp_core.loading.allocator import return_freed_memory
from ftp_core.routers import Router
from ftp_core.text.encoding import EncodedExample, encoded_fingerprint
from search.inputs.data import search_set
from search.problem.fidelities import ablation_fidelity
from search.problem.objectives import evaluation_context
from search.stages.open_study import OpenStudy, StoredRouter

if TYPE_CHECKING:
    from search.evaluators.ray_pool import RayPool


def start_workers(study: OpenStudy, router: Router, fresh: Sequence[Sequence[EncodedExample]]) -> RayPool:
    """The workers that evaluate schedules on the search set with a router, and on batches of other items.

    Raises:
        EvaluationError: No worker could start.
    """
    config = study.config
    with study.view.stage("Starting workers", config.workers + config.gpu_workers) as stage:
        # Ray takes seconds to import: commands that only read a study shall not wait for it.
        from search.evaluators.local import ModelSetup
        from search.evaluators.ray_cluster import cluster_address
        from search.evaluators.ray_pool import RayPool

        # What stages before have left in the allocator, workers may need.
        return_freed_memory()
        setup = ModelSetup(
            study.workload.model.skipping,
            search_set(config, study.workload),
            fidelities=config.fidelities,
            ablation_fidelity=share_of_ablations(study),
            router=router,
            choices=config.min_accuracy is not None,
            prefix_bytes=config.prefix_bytes,
            on_one_machine=cluster_address(config.ray_address) is None,
            loaded_by=(config.reference, config.dtype) if config.device_map else None,
            fresh=fresh,
        )
        return RayPool(
            setup,
            config.workers,
            address=config.ray_address,
            device=config.device if ":" in config.device else study.workload.model.skipping.device.type,
            n_gpu_workers=config.gpu_workers,
            gpu_share=config.gpu_share,
            trial_timeout_s=config.trial_timeout,
            on_ready=stage.advance,
        )


def search_context(study: OpenStudy, router: StoredRouter) -> str:
    """Hash of what evaluations on the search set depend on beside the schedule."""
    config = study.config
    return evaluation_context(
        study.workload.model.skipping_fingerprint(),
        encoded_fingerprint(search_set(study.config, study.workload)),
        str(router),
        config.min_accuracy is not None,
        study.workload.model.skipping.keep_first,
    )


def share_of_ablations(study: OpenStudy) -> float:
    """Share of the search set that ablations are evaluated on."""
    return ablation_fidelity(len(search_set(study.config, study.workload)), study.config.fidelities)
