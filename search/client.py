"""Client of a service: the operations of its API as Python calls."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ftp_core.extras import install_extra
from search.errors import SearchError
from studies.records.study_facts import Origin
from studies.store.results_folder import check_results

if TYPE_CHECKING:
    import httpx

_TIMEOUT_S = 30.0
_PAGE = 1000
# Seconds within which a restarted service answers again.
_PATIENCE_S = 60.0
_AT_REST = ("created", "stopped", "failed", "finished")


class ServiceError(SearchError):
    """The service refused, or does not answer.

    Attributes:
        status: HTTP status; None without an answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def may_pass(self) -> bool:
        """True if the service may answer later."""
        return self.status in (None, 503)


class Client:
    """Connection to a service.

    Args:
        url: Address of the service, such as `http://gpu-box:8000`.
        token: Secret that `ftp-search token add` printed; None if the service needs none.
        transport: Transport of httpx; None for the network.

    Raises:
        ServiceError: httpx is not installed, or the address is invalid.
    """

    def __init__(self, url: str, token: str | None = None, transport: httpx.BaseTransport | None = None) -> None:
        try:
            import httpx
            import httpx_sse
        except ImportError as error:
            raise ServiceError(f"{error.name} is not installed: {install_extra('serve')}.") from error
        self._httpx, self._sse = httpx, httpx_sse
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            base = httpx.URL(url.rstrip("/"))
            if base.scheme not in ("http", "https") or not base.host:
                raise ValueError
        except (httpx.InvalidURL, ValueError):
            raise ServiceError(f"{url!r} is no address of a service: expected one such as http://host:8000.") from None
        # Redirects are not followed, so that the token reaches no other service.
        self._http = httpx.Client(
            base_url=f"{str(base).rstrip('/')}/api/v1", headers=headers, timeout=_TIMEOUT_S, transport=transport
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def create(self, name: str, *, tags: Sequence[str] = (), note: str = "", **settings: Any) -> dict[str, Any]:
        """Creates a study and queues it for the runners.

        Args:
            name: Name of the study, unique in the service.
            tags: Short texts to find it by.
            note: Note on it.
            settings: Fields of `RunConfig`; missing ones have their defaults.
        """
        said = {**({"tags": list(tags)} if tags else {}), **({"note": note} if note else {})}
        return self._json("POST", "/studies", json={"name": name, **said, **settings})

    def label(self, name: str, tags: Sequence[str] | None = None, note: str | None = None) -> dict[str, Any]:
        """Gives a study other tags, or another note.

        Args:
            name: Name of the study.
            tags: All tags that it has from now on; None to leave them.
            note: Note that it has from now on, empty for none; None to leave it.
        """
        said = {**({} if tags is None else {"tags": list(tags)}), **({} if note is None else {"note": note})}
        return self._json("PATCH", f"{_study(name)}/labels", json=said)

    def studies(
        self, state: str | None = None, tag: str | None = None, sweep: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """All studies, or those in a state, with a tag, or of a sweep, oldest first."""
        asked = {"state": state, "tag": tag, "sweep": sweep}
        given = {key: value for key, value in asked.items() if value is not None}
        for offset in count(0, _PAGE):
            page = self._json("GET", "/studies", params={**given, "offset": offset, "limit": _PAGE})
            yield from page["items"]
            if offset + _PAGE >= page["total"]:
                return

    def study(self, name: str) -> dict[str, Any]:
        """A study without its trials."""
        return self._json("GET", _study(name))

    def stop(self, name: str) -> dict[str, Any]:
        """Stops a study; all results are kept."""
        return self._json("POST", f"{_study(name)}/stop")

    def resume(self, name: str, **changes: Any) -> dict[str, Any]:
        """Queues a study again, with changed settings such as `trials`."""
        return self._json("POST", f"{_study(name)}/resume", json=changes)

    def measure(self, name: str, trial: int) -> dict[str, Any]:
        """Queues a finished study again to measure a trial, too."""
        return self._json("POST", f"{_study(name)}/points/{trial}/measure")

    def select(self, name: str, trial: int) -> dict[str, Any]:
        """Queues a finished study again to measure, select, test and export a trial."""
        return self._json("POST", f"{_study(name)}/points/{trial}/select")

    def export(self, name: str, trial: int) -> dict[str, Any]:
        """The schedule of a trial with the settings of its study, as `schedule.json` of its pruned model says it."""
        return self._json("POST", f"{_study(name)}/points/{trial}/export")

    def prompt(
        self, name: str, trial: int, text: str, new_tokens: int | None = None, timeout_s: float = 360.0
    ) -> dict[str, Any]:
        """A prompt under the schedule of a trial: the blocks that its tokens run, and what both models answer.

        Args:
            name: Name of the study.
            trial: Number of the trial.
            text: The prompt.
            new_tokens: Most tokens of an answer; None for the service's default.
            timeout_s: Seconds to wait for the service, which loads the model.
        """
        asked = {"text": text} | ({} if new_tokens is None else {"new_tokens": new_tokens})
        return self._json("POST", f"{_study(name)}/points/{trial}/prompt", json=asked, timeout=timeout_s)

    def delete(self, name: str) -> None:
        """Deletes a study from the database."""
        self._checked("DELETE", _study(name))

    def trials(self, name: str, **wanted: Any) -> Iterator[dict[str, Any]]:
        """The ended trials of a study, by number or, with `sort`, by a value.

        Parameters such as `state`, `proposer`, `round`, `front`, `at_most` and `at_least` select some of them.
        """
        place, following = ("after", -1) if wanted.get("sort") is None else ("offset", 0)
        while following is not None:
            page = self._json("GET", f"{_study(name)}/trials", params={**wanted, place: following, "limit": _PAGE})
            yield from page["items"]
            following = page["next"]

    def trial(self, name: str, number: int) -> dict[str, Any]:
        """One trial that has ended."""
        return self._json("GET", f"{_study(name)}/trials/{number}")

    def schedule(self, name: str, number: int) -> dict[str, Any]:
        """The schedule of a trial: a share for each block, or lists by name where halves of blocks skip apart."""
        return self._json("GET", f"{_study(name)}/trials/{number}/schedule")

    def stages(self, name: str) -> dict[str, Any]:
        """The stages of a study, and the progress of the one that runs."""
        return self._json("GET", f"{_study(name)}/stages")

    def measurements(self, name: str, **wanted: Any) -> list[dict[str, Any]]:
        """The measurements of a study, or those of a `split`."""
        return list(self._json("GET", f"{_study(name)}/measurements", params=wanted)["items"])

    def selection(self, name: str) -> dict[str, Any]:
        """The trial that was selected, and why; a ServiceError if none was yet."""
        return self._json("GET", f"{_study(name)}/selection")

    def comparison(self, name: str) -> list[dict[str, Any]]:
        """What other methods came to on the study's test items, judged against its own schedules."""
        return list(self._json("GET", f"{_study(name)}/comparison")["items"])

    def compare(
        self,
        name: str,
        methods: Sequence[str] | None = None,
        budgets: Sequence[float] | None = None,
        match: str = "latency",
        seeds: int | None = None,
        shapes: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Queues a finished study for other methods to be compared with its schedules; see `comparison` for the rows.

        Args:
            name: Name of the study.
            methods: Names of methods; None for all.
            budgets: Shares of the dense model's time, or operations, to save; None for what the selected schedule
                saves.
            match: What is alike: `latency` or `flops`.
            seeds: Seeds of each method with chance; None for the service's default.
            shapes: Further prefills to time, as rows x tokens, such as `8x2048`.
        """
        asked = {"methods": methods, "budgets": budgets, "match": match, "seeds": seeds, "shapes": shapes}
        given = {key: value for key, value in asked.items() if value is not None}
        return self._json("POST", f"{_study(name)}/comparison", json=given)

    def front(self, name: str) -> list[dict[str, Any]]:
        """The non-dominated trials."""
        return list(self._json("GET", f"{_study(name)}/front")["items"])

    def hypervolume(self, name: str) -> dict[str, Any]:
        """The growth of the front's hypervolume."""
        return self._json("GET", f"{_study(name)}/hypervolume")

    def routers(self, name: str) -> list[dict[str, Any]]:
        """The routers of a study, without their weights."""
        return list(self._json("GET", f"{_study(name)}/routers")["items"])

    def logs(self, name: str) -> Iterator[str]:
        """The lines that the runs of a study printed."""
        after = 0
        while True:
            page = self._json("GET", f"{_study(name)}/logs", params={"after": after, "limit": _PAGE})
            yield from (line["text"] for line in page["items"])
            if len(page["items"]) < _PAGE:
                return
            after = page["next"]

    def runners(self) -> list[dict[str, Any]]:
        """The service's runners."""
        return list(self._json("GET", "/runners")["items"])

    def events(self, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The events of a study, as kind and content, from its first run on until it is at rest.

        After a lost connection, the events go on where they ended.

        Raises:
            ServiceError: The service refuses, or does not answer for long.
        """
        last_id: str | None = None
        patience = _Patience()
        while True:
            headers = {} if last_id is None else {"Last-Event-ID": last_id}
            try:
                # The service sends something more often than that.
                with self._stream(f"{_study(name)}/events", headers=headers, timeout=60.0) as response:
                    if response.status_code == 204:
                        return
                    for event in self._sse.EventSource(response).iter_sse():
                        patience = _Patience()
                        last_id = event.id or last_id
                        yield event.event, event.json()
                        if event.event in ("rest", "deleted"):
                            return
            except ServiceError as error:
                patience.wait(error)

    def wait(
        self,
        name: str,
        timeout_s: float | None = None,
        on_look: Callable[[Mapping[str, Any]], None] = lambda study: None,
    ) -> dict[str, Any]:
        """Waits until a study neither runs nor waits for a runner.

        Args:
            name: Name of the study.
            timeout_s: Most seconds to wait; None for no limit.
            on_look: Function that is called with the study at every look.

        Raises:
            ServiceError: The time is over, or the service does not answer for long.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        patience = _Patience()
        while True:
            away: ServiceError | None = None
            try:
                study = self.study(name)
                on_look(study)
                if study["state"] in _AT_REST:
                    return study
                patience = _Patience()
            except ServiceError as error:
                if not error.may_pass:
                    raise
                away = error
            left_s = 1.0 if until is None else until - time.monotonic()
            if left_s <= 0:
                raise away or ServiceError(f"Study {name!r} has not ended within {timeout_s} s: it goes on.")
            if away is not None:
                patience.wait(away)
            else:
                time.sleep(min(1.0, left_s))

    def download_report(self, name: str, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes the files of a study's report into a folder and returns their paths.

        Raises:
            ForeignResultsError: The folder holds the results of another study, or files of something else.
        """
        folder = Path(folder)
        study = self.study(name)
        files = self._json("GET", f"{_study(name)}/report")["items"]
        # Names without folders, whatever the service sends.
        names = [Path(file["name"]).name for file in files]
        origin = Origin(name, datetime.fromisoformat(study["created_at"]).isoformat())
        check_results(folder, {origin}, "choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        return [self._download(f"{_study(name)}/report/{quote(one, safe='')}", folder / one) for one in names]

    def download_model(self, name: str, file: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Writes the pruned model of a study into a ZIP archive and returns its path.

        Args:
            name: Name of the study.
            file: Path of the archive.
            overwrite: Replaces an existing file.

        Raises:
            ServiceError: The file exists, or the service refuses.
        """
        file = Path(file)
        if not overwrite and os.path.lexists(file):
            raise ServiceError(f"{file} is there already: choose another name, or replace it with overwrite=True.")
        return self._download(f"{_study(name)}/model", file)

    def _download(self, path: str, file: Path) -> Path:
        partial = file.with_name(f".partial-{os.getpid()}-{file.name}")
        try:
            with self._stream(path) as response, partial.open("wb") as content:
                content.writelines(response.iter_bytes())
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)
        return file

    @contextmanager
    def _stream(self, path: str, **options: Any) -> Iterator[httpx.Response]:
        try:
            with self._http.stream("GET", path, **options) as response:
                if not response.is_success:
                    response.read()
                    raise _refusal(response)
                yield response
        except self._httpx.TransportError as error:
            raise self._away(error) from error

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        response = self._checked(method, path, **options)
        try:
            found: dict[str, Any] = response.json()
        except ValueError as error:
            raise ServiceError(f"{self._http.base_url} answers, but is no service of ftp-search.") from error
        return found

    def _checked(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except self._httpx.TransportError as error:
            raise self._away(error) from error
        if not response.is_success:
            raise _refusal(response)
        return response

    def _away(self, error: Exception) -> ServiceError:
        return ServiceError(f"The service at {self._http.base_url} does not answer: {error}. Is it running?")


class _Patience:
    """Pauses longer and longer while the service may answer later, up to a limit."""

    def __init__(self) -> None:
        self._until: float | None = None
        self._pause_s = 0.2

    def wait(self, error: ServiceError) -> None:
        now = time.monotonic()
        self._until = now + _PATIENCE_S if self._until is None else self._until
        if now > self._until or not error.may_pass:
            raise error
        time.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, 5.0)


def _study(name: str) -> str:
    return f"/studies/{quote(name, safe='')}"


def _refusal(response: httpx.Response) -> ServiceError:
    try:
        detail = str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"The service answered with {response.status_code}."
    return ServiceError(detail, response.status_code)
