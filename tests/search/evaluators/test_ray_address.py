"""A wrong address of a cluster, and more workers than a machine can have, are said at once."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from ftp_core.cpu_limits import n_cores
from search.errors import ConfigError, EvaluationError
from search.evaluators.ray_address import check_address
from search.evaluators.worker_handle import check_fit, most_on_this_machine
from tests.search.command import Result, run_here

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    return lambda *arguments: run_here(monkeypatch, capsys, tmp_path, *arguments)


@contextmanager
def _listening(answer: bytes | None) -> Iterator[str]:
    """A server that answers everybody with some bytes, or with nothing until they have left."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with closing(connection):
                connection.recv(4096)
                if answer is not None:
                    connection.sendall(answer)
                with suppress(ConnectionResetError):
                    while connection.recv(4096):
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(30)


@pytest.mark.parametrize("address", ["nonsense", "host:", ":6379", "host:port", "host:0", "host:70000", "ray://host"])
def test_an_address_without_a_host_or_a_port_is_refused(address: str) -> None:
    with pytest.raises(EvaluationError, match="expected HOST:PORT"):
        check_address(address)


def test_where_nothing_listens_no_cluster_answers() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", f"no-such-host.invalid:{port}"):
        with pytest.raises(EvaluationError, match="No Ray cluster answers at"):
            check_address(address)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is no Ray cluster"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "is no Ray cluster"),
        (None, "No Ray cluster answers"),
    ],
    ids=["http", "ssh", "silence"],
)
def test_another_kind_of_server_is_no_cluster(answer: bytes | None, words: str) -> None:
    with _listening(answer) as address, pytest.raises(EvaluationError, match=words):
        check_address(address)


def test_a_cluster_is_taken_for_one() -> None:
    # In a process of its own, since Ray is one of a process.
    program = (
        "import ray\n"
        "from search.evaluators.ray_address import check_address\n"
        "found = ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False)\n"
        "check_address(found.address_info['gcs_address'])\n"
        "print('taken')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=240)
    assert done.stdout.endswith("taken\n"), done.stderr
    for address in (None, "auto", "local"):
        check_address(address)


@pytest.mark.parametrize("command", ["run", "search", "runner"])
def test_commands_say_that_no_cluster_answers_in_one_line(run: Run, tmp_path: Path, command: str) -> None:
    refused = run(command, "--ray-address", "127.0.0.1:9")
    assert refused.code == 1 and "No Ray cluster answers at '127.0.0.1:9'" in refused.err
    assert refused.err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_single_gpu_of_this_machine_is_refused_on_a_cluster(run: Run, tmp_path: Path) -> None:
    refused = run("run", "--device", "cuda:1", "--ray-address", "10.0.0.5:6379")
    assert refused.code == 2 and "on a cluster Ray assigns GPUs: give --device cuda" in refused.err
    assert refused.err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_far_more_workers_than_cores_are_refused_on_this_machine_alone(run: Run, tmp_path: Path) -> None:
    most = most_on_this_machine()
    assert most >= n_cores()
    check_fit(most)
    with pytest.raises(ConfigError, match=f"--workers is {most + 1}, but this machine has"):
        check_fit(most + 1)
    refused = run("run", "--device", "cpu", "--workers", str(1000 * most))
    assert refused.code == 2 and f"give {most} at most" in refused.err and not list(tmp_path.iterdir())
