"""A pool of workers answers every task once, whatever becomes of the workers."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import ray

from ftp_core.schedule import SparsitySchedule
from search.errors import ConfigError, EvaluationError
from search.evaluators import Evaluation, Task
from search.evaluators.ray_cluster import cluster, start_ray
from search.evaluators.ray_pool import RayPool

# Nothing here imports torch: a worker whose setup does not need it shall do without.

pytestmark = pytest.mark.timeout(600)

ANSWER, DIE, EXIT, HANG, HANG_IN_C, RAISE, WAIT = range(7)
LIMIT_S = 8.0
PATIENCE_S = 240


def task(does=ANSWER, number=0, part=0):
    """A task that does something; the number keeps it apart from others."""
    return Task(SparsitySchedule.from_grid_indices([does, number // 361, number // 19 % 19, number % 19]), part)


def number_of(task):
    _, high, middle, low = task.schedule.grid_indices()
    return 361 * high + 19 * middle + low


@dataclass(frozen=True)
class Obedient:
    """Workers that do what a task says."""

    seconds: float = 0.0
    folder: Path | None = None

    def start(self, device, halvings):
        if self.folder is not None:
            (self.folder / str(os.getpid())).touch()
        self_facts = {
            "pid": os.getpid(),
            "halvings": halvings,
            "gpu": device == "cuda",
            "device": device,
            "torch": "torch" in sys.modules,
        }
        return ObedientWorker(self.seconds, self_facts)


@dataclass(frozen=True)
class ObedientWorker:
    seconds: float
    facts: dict

    def evaluate(self, task):
        began_at, began = time.time(), time.perf_counter()
        does = task.schedule.grid_indices()[0]
        if does in (DIE, EXIT):
            # So that the answer to the task before is on its way: it would be lost with the process.
            time.sleep(0.3)
        if does == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        elif does == EXIT:
            sys.exit(3)
        elif does == HANG:
            time.sleep(3600)
        elif does == HANG_IN_C:
            # Unlike `CDLL`, this keeps the interpreter's lock: no thread of Python's gets to run.
            ctypes.PyDLL(None).sleep(3600)
        elif does == RAISE:
            raise ValueError("a long story\nwith this end")
        elif does == WAIT:
            time.sleep(0.5)
        time.sleep(self.seconds)
        seconds = time.perf_counter() - began
        return Evaluation(task, {"number": number_of(task), **self.facts}, seconds=seconds, began_at=began_at)


@dataclass(frozen=True)
class Refusing:
    """Setups that raise an error, or kill the process, but for those whose turn is named."""

    folder: Path
    good: tuple[int, ...] = ()
    kills: bool = False

    def start(self, device, halvings):
        turn = next(turn for turn in range(100) if not self._has_been(turn))
        if turn in self.good:
            return Obedient().start(device, halvings)
        if self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError("no model\nno disk")

    def _has_been(self, turn):
        try:
            (self.folder / str(turn)).touch(exist_ok=False)
        except FileExistsError:
            return True
        return False


@dataclass(frozen=True)
class Hungry:
    """Setups that die like one that the kernel ends for want of memory, until batches have been halved enough."""

    enough: int

    def start(self, device, halvings):
        if halvings < self.enough:
            os.kill(os.getpid(), signal.SIGKILL)
        return Obedient().start(device, halvings)


@dataclass(frozen=True)
class Late:
    """Setups of which only the first is done before a file exists."""

    folder: Path

    def start(self, device, halvings):
        try:
            (self.folder / "first").touch(exist_ok=False)
        except FileExistsError:
            while not (self.folder / "go").exists():
                time.sleep(0.05)
        return Obedient().start(device, halvings)


def answers(pool, tasks):
    """Submit tasks and wait for all of them; fails if one is answered twice, or one that was not asked."""
    for one in tasks:
        pool.submit(one)
    return collect(pool, tasks)


def collect(pool, tasks):
    missing, found = set(tasks), {}
    ends = time.monotonic() + PATIENCE_S
    while missing:
        for result in pool.next_results(10.0):
            missing.remove(result.task)
            found[result.task] = result
        assert time.monotonic() < ends, f"{len(missing)} tasks were not answered"
    return found


def some(n, start=0):
    return [task(number=number) for number in range(start, start + n)]


def pids(results):
    return {int(result.metrics["pid"]) for result in results.values() if result.error is None}


def until(pool, condition, start=2000):
    """Evaluate tasks until their results meet a condition, which is given all of them."""
    ends, found = time.monotonic() + PATIENCE_S, {}
    while not condition(found):
        assert time.monotonic() < ends, "the condition was not met in time"
        found = answers(pool, some(20, start))
        assert not any(result.error for result in found.values())
    return found


class TestOnePool:
    @pytest.fixture(scope="class")
    @classmethod
    def pool(cls):
        handler = signal.getsignal(signal.SIGTERM)
        with closing(RayPool(Obedient(0.01), 2, trial_timeout_s=LIMIT_S)) as pool:
            assert signal.getsignal(signal.SIGTERM) is handler
            yield pool

    def test_every_task_is_answered_once_with_its_own_figures(self, pool):
        tasks = [task(number=number, part=part) for number in range(40) for part in (0, 1)]
        found = answers(pool, tasks)
        assert all(found[one].metrics["number"] == number_of(one) and found[one].error is None for one in tasks)

    def test_all_workers_evaluate(self, pool):
        until(pool, lambda found: len(pids(found)) == 2)
        assert pool.capacity == 6

    def test_workers_whose_setup_does_not_need_torch_do_not_load_it(self, pool):
        assert not any(result.metrics["torch"] for result in answers(pool, some(10)).values())

    def test_nothing_to_wait_for_gives_nothing(self, pool):
        assert pool.next_results(0.0) == []
        assert pool.next_results() == []

    def test_an_error_comes_back_with_its_last_line_and_its_worker_goes_on(self, pool):
        before = pids(until(pool, lambda found: len(pids(found)) == 2))
        found = answers(pool, [task(RAISE), *some(10)])
        assert found.pop(task(RAISE)).error == "with this end"
        assert not any(result.error for result in found.values())
        assert pids(answers(pool, some(20))) <= before

    def test_evaluations_say_which_worker_was_at_them_and_when_and_none_does_two_at_a_time(self, pool):
        found = {}
        while len({result.metrics["pid"] for result in found.values()}) < 2:
            found = answers(pool, some(20))
        pid_of = {result.worker: result.metrics["pid"] for result in found.values()}
        assert set(pid_of) == {"0", "1"} and len(set(pid_of.values())) == 2
        for worker, pid in pid_of.items():
            own = [result for result in found.values() if result.worker == worker]
            assert {result.metrics["pid"] for result in own} == {pid}
            times = sorted((result.began_at, result.began_at + result.seconds) for result in own)
            # To the millisecond, as the clock that says when is not the one that says how long.
            assert all(earlier[1] < later[0] + 1e-3 for earlier, later in pairwise(times))

    def test_a_worker_that_replaces_another_has_its_number_and_lost_time_is_told(self, pool):
        began_at = time.time()
        lost = answers(pool, [task(EXIT)])[task(EXIT)]
        assert lost.worker in ("0", "1") and lost.seconds > 0 and lost.began_at > began_at - 0.1
        found = until(pool, lambda found: len(pids(found)) == 2)
        assert {result.worker for result in found.values()} == {"0", "1"}

    @pytest.mark.parametrize("does", [DIE, EXIT])
    def test_a_task_that_kills_its_worker_comes_back_and_those_behind_it_are_answered(self, pool, does):
        found = answers(pool, [*some(3), task(does), *some(20, start=3)])
        assert "worker died" in found.pop(task(does)).error
        assert not any(result.error for result in found.values())
        until(pool, lambda found: len(pids(found)) == 2)

    @pytest.mark.parametrize("does", [HANG, HANG_IN_C])
    def test_a_task_that_hangs_comes_back_with_the_limit_and_its_worker_is_replaced(self, pool, does):
        before = pids(until(pool, lambda found: len(pids(found)) == 2))
        found = answers(pool, [*some(3), task(does), *some(20, start=3)])
        assert f"{LIMIT_S:g} s" in found.pop(task(does)).error
        assert not any(result.error for result in found.values())
        after = pids(until(pool, lambda found: len(pids(found)) == 2))
        assert len(before & after) == 1

    def test_only_a_worker_that_may_have_died_for_want_of_memory_gets_smaller_batches(self, pool):
        def halvings(found):
            return {int(result.metrics["pid"]): int(result.metrics["halvings"]) for result in found.values()}

        both = lambda found: len(pids(found)) == 2  # noqa: E731
        before = sum(halvings(until(pool, both)).values())
        answers(pool, [task(EXIT)])
        assert sum(halvings(until(pool, both)).values()) == before
        answers(pool, [task(DIE)])
        assert sum(halvings(until(pool, both)).values()) == before + 1

    def test_the_death_of_an_idle_worker_is_no_tasks_fault(self, pool):
        before = pids(until(pool, lambda found: len(pids(found)) == 2))
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        time.sleep(2.0)
        found = answers(pool, some(20))
        assert not any(result.error for result in found.values())
        assert not pids(found) & before

    def test_the_pool_grows_and_shrinks_while_tasks_run_and_loses_none(self, pool):
        tasks = [task(WAIT, number) for number in range(24)]
        for one in tasks[:12]:
            pool.submit(one)
        pool.resize(4)
        assert pool.n_workers == 4
        for one in tasks[12:]:
            pool.submit(one)
        pool.resize(1)
        pool.resize(3)
        pool.resize(1)
        found = collect(pool, tasks)
        assert not any(result.error for result in found.values())
        assert pool.capacity == 3 and len(pids(answers(pool, some(20)))) == 1
        pool.resize(4)
        until(pool, lambda found: len(pids(found)) == 4)
        assert pool.capacity == 12
        assert {result.worker for result in answers(pool, some(60)).values()} <= {"0", "1", "2", "3"}
        pool.resize(2)
        assert len(pids(answers(pool, some(30)))) <= 4
        assert pool.capacity == 6 and len(pids(answers(pool, some(30)))) <= 2

    def test_a_pool_has_no_more_workers_than_its_machine_is_given(self, pool, monkeypatch, caplog):
        monkeypatch.setattr("search.evaluators.ray_pool.most_on_this_machine", lambda: 3)
        pool.resize(1000)
        assert pool.n_workers == 3 and "1000 workers are asked for" in caplog.text
        pool.resize(2)
        assert pool.n_workers == 2 and not any(result.error for result in answers(pool, some(6)).values())

    def test_a_pool_without_workers_is_refused(self, pool):
        with pytest.raises(ConfigError, match="at least one"):
            pool.resize(0)

    def test_a_second_ray_in_one_process_is_refused(self, pool):
        with pytest.raises(EvaluationError, match="Ray could not start"):
            RayPool(Obedient(), 1)


class TestPoolsOfOneRay:
    """Pools of their own on one Ray, which takes seconds to start."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def kept_up(cls):
        with cluster(None, 2):
            yield

    @pytest.mark.parametrize("kills", [False, True])
    def test_workers_that_never_start_are_an_error_with_its_cause(self, tmp_path, kills):
        with pytest.raises(EvaluationError, match="want of memory" if kills else "No worker could start: no disk"):
            RayPool(Refusing(tmp_path, kills=kills), 1)
        # One place is tried three times.
        assert len(list(tmp_path.iterdir())) == 3

    @pytest.mark.parametrize("gpus", [{"n_workers": 1, "n_gpu_workers": 1000}, {"n_workers": 1000, "device": "cuda"}])
    def test_gpus_that_are_not_there_are_an_error_and_not_waited_for(self, gpus):
        with pytest.raises(EvaluationError, match="Of 1000 workers that take 0.5 of a GPU"):
            RayPool(Obedient(), **gpus, gpu_share=0.5)

    @pytest.mark.parametrize("device", ["cpu", "cuda:1", "mps"])
    def test_workers_compute_on_the_device_that_is_asked_for_as_their_replacements_do(self, device):
        with closing(RayPool(Obedient(), 1, device=device)) as pool:
            pool.resize(2)
            assert pool.n_workers == 2
            found = answers(pool, [task(DIE), *some(4)])
            assert {one.metrics["device"] for one in found.values() if not one.error} == {device}

    def test_workers_that_cannot_be_replaced_are_an_error_after_the_last_result(self, tmp_path):
        with closing(RayPool(Refusing(tmp_path, good=(0,)), 1)) as pool:
            found = answers(pool, [*some(3), task(EXIT)])
            assert "worker died" in found[task(EXIT)].error
            pool.submit(task(number=9))
            with pytest.raises(EvaluationError, match="no disk"):
                pool.next_results(PATIENCE_S)

    def test_a_start_that_fails_now_and_then_is_tried_again(self, tmp_path):
        with closing(RayPool(Refusing(tmp_path, good=(2, 3)), 2)) as pool:
            until(pool, lambda found: len(pids(found)) == 2)

    def test_workers_that_die_while_loading_get_smaller_batches_until_they_live(self):
        with closing(RayPool(Hungry(enough=2), 1)) as pool:
            [result] = answers(pool, some(1)).values()
            assert result.metrics["halvings"] == 2

    def test_the_first_workers_work_while_others_still_load(self, tmp_path):
        ready = []
        with closing(RayPool(Late(tmp_path), 3, on_ready=lambda: ready.append(1))) as pool:
            assert len(ready) == 1 and pool.capacity == 3
            assert len(pids(answers(pool, some(20)))) == 1
            (tmp_path / "go").touch()
            until(pool, lambda found: len(pids(found)) == 3)
            assert len(ready) == 3 and pool.capacity == 9


def test_a_pool_joins_a_cluster_uses_its_gpus_and_leaves_it_running():
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1})
    try:
        seen = set()
        for _ in range(2):
            # The second finds the cores and the GPU free again.
            pool = RayPool(Obedient(), 2, address=cluster.address, n_gpu_workers=2, gpu_share=0.5)
            with closing(pool):
                found = until(pool, lambda found: len(pids(found)) == 4)
                assert {result.metrics["gpu"] for result in found.values()} == {False, True}
                host = socket.gethostname()
                assert {result.worker for result in found.values()} == {f"{number} on {host}" for number in range(4)}
                assert not pids(found) & seen
                seen |= pids(found)
    finally:
        cluster.shutdown()


def test_pools_use_the_ray_that_is_kept_up_and_leave_it_up():
    with cluster(None, 1):
        job = ray.get_runtime_context().get_job_id()
        seen = set()
        for address in (None, "nowhere:1"):
            # Two workers on one core, as in a pool that grows; the address of what is up counts.
            with closing(RayPool(Obedient(), 2, address=address)) as pool, cluster(None, 3):
                found = until(pool, lambda found: len(pids(found)) == 2)
                assert not pids(found) & seen
                seen |= pids(found)
            assert ray.is_initialized() and ray.get_runtime_context().get_job_id() == job
    assert not ray.is_initialized()


# SIGTERM that comes while Ray starts, when it has taken the handling of it over.
TOLD_TO_END = """
import os, signal
import ray
from search.evaluators.ray_cluster import start_ray

def told(handler, register=ray._private.utils.set_sigterm_handler):
    register(handler)
    os.kill(os.getpid(), signal.SIGTERM)

ray._private.utils.set_sigterm_handler = told
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    start_ray(None, 1)
except KeyboardInterrupt:
    ray._private.utils.set_sigterm_handler = told.__defaults__[0]
    assert not ray.is_initialized()
    # Nothing is left that would be in the way of the next one.
    start_ray(None, 1)
    ray.shutdown()
    os._exit(130)
"""


def test_who_is_told_to_end_while_ray_starts_hears_it():
    ended = subprocess.run([sys.executable, "-c", TOLD_TO_END], check=False, timeout=120)
    assert ended.returncode == 130


def test_a_ray_that_does_not_start_in_its_time_is_an_error_that_says_what_to_do(monkeypatch):
    # As Ray's node says it: a plain exception, of no kind of its own.
    said = "The current node timed out during startup. This could happen because some of the raylet failed to startup."

    def late(*_):
        raise Exception(said)

    monkeypatch.setattr("ray._private.services.get_node", late)
    with pytest.raises(EvaluationError, match=r"Ray could not start: .* too busy: try again when it is quiet\."):
        start_ray(None, 1)
    monkeypatch.undo()
    with cluster(None, 1):
        assert ray.is_initialized()


def test_a_kept_ray_ends_with_an_error_inside():
    with pytest.raises(KeyError), cluster(None, 1):
        raise KeyError
    assert not ray.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_whatever_dies_every_task_is_answered_once_and_only_those_that_ran_there_with_an_error(tmp_path, seed):
    rng, ends, kills = random.Random(seed), threading.Event(), []

    def kill_at_random():
        while not ends.wait(rng.uniform(0.1, 0.8)):
            alive = [int(path.name) for path in tmp_path.iterdir() if _is_worker(path.name)]
            if alive:
                victim = rng.choice(alive)
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    kills.append(victim)

    killer = threading.Thread(target=kill_at_random)
    with closing(RayPool(Obedient(0.02, tmp_path), 3, trial_timeout_s=60)) as pool:
        killer.start()
        try:
            left, in_flight = list(range(500)), set()
            failures, answered = Counter(), Counter()
            while left or in_flight:
                while left and len(in_flight) < pool.capacity:
                    one = task(number=left.pop())
                    in_flight.add(one)
                    pool.submit(one)
                if rng.random() < 0.02:
                    pool.resize(rng.randint(2, 4))
                for result in pool.next_results(PATIENCE_S):
                    in_flight.remove(result.task)
                    if result.error is None:
                        answered[result.metrics["number"]] += 1
                    else:
                        assert "worker died" in result.error
                        failures[number_of(result.task)] += 1
                        left.append(number_of(result.task))
        finally:
            ends.set()
            killer.join()
    assert answered == Counter(range(500))
    assert kills
    assert failures.total() <= len(kills)


def _is_worker(pid):
    """Whether a process is still one of Ray's workers: numbers are given again."""
    try:
        return b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
