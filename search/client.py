"""Asks a service over HTTP: the same operations as its API, as Python calls."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ftp_core.extras import install_extra
from search.errors import SearchError
from studies.store.results_folder import Origin, check_results

if TYPE_CHECKING:
    import httpx

_TIMEOUT_S = 30.0
_PAGE = 1000
# A service that is started anew is back by then.
_PATIENCE_S = 60.0
_AT_REST = ("created", "stopped", "failed", "finished")


class ServiceError(SearchError):
    """The service refused, or does not answer.

    Attributes:
        status: Its HTTP status; None if it does not answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """A service that runs elsewhere.

    Args:
        url: Its address, such as `http://gpu-box:8000`.
        token: The secret that `ftp-search token add` printed; None where nobody needs one.
        transport: Of httpx; None for the network.

    Raises:
        ServiceError: httpx is not installed, or the address is none.
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
        # Redirects are not followed: the token is for this service alone.
        self._http = httpx.Client(
            base_url=f"{str(base).rstrip('/')}/api/v1", headers=headers, timeout=_TIMEOUT_S, transport=transport
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give connections back."""
        self._http.close()

    def create(self, name: str, **settings: Any) -> dict[str, Any]:
        """Create a study and hand it to the service's runners.

        Args:
            name: Unique in the service.
            settings: Fields of `RunConfig`; those that are not given have their defaults.
        """
        return self._json("POST", "/studies", json={"name": name, **settings})

    def studies(self, state: str | None = None) -> Iterator[dict[str, Any]]:
        """Every study, oldest first.

        Args:
            state: Only those that stand so.
        """
        given = {} if state is None else {"state": state}
        offset = 0
        while True:
            page = self._json("GET", "/studies", params={**given, "offset": offset, "limit": _PAGE})
            yield from page["items"]
            offset += _PAGE
            if offset >= page["total"]:
                return

    def study(self, name: str) -> dict[str, Any]:
        """A study without its trials."""
        return self._json("GET", _study(name))

    def stop(self, name: str) -> dict[str, Any]:
        """Stop a study; everything is kept."""
        return self._json("POST", f"{_study(name)}/stop")

    def resume(self, name: str, **changes: Any) -> dict[str, Any]:
        """Hand a study to the runners again.

        Args:
            name: The study.
            changes: Settings that change, such as `trials`.
        """
        return self._json("POST", f"{_study(name)}/resume", json=changes)

    def delete(self, name: str) -> None:
        """Delete a study with everything that the database knows of it."""
        self._checked("DELETE", _study(name))

    def trials(self, name: str, **wanted: Any) -> Iterator[dict[str, Any]]:
        """The trials of a study that have ended, by number.

        Args:
            name: The study.
            wanted: `state`, `proposer` or `round`: only those.
        """
        after: int | None = -1
        while after is not None:
            page = self._json("GET", f"{_study(name)}/trials", params={**wanted, "after": after, "limit": _PAGE})
            yield from page["items"]
            after = page["next"]

    def trial(self, name: str, number: int) -> dict[str, Any]:
        """One trial that has ended."""
        return self._json("GET", f"{_study(name)}/trials/{number}")

    def schedule(self, name: str, number: int) -> dict[str, Any]:
        """What a trial skips."""
        return self._json("GET", f"{_study(name)}/trials/{number}/schedule")

    def front(self, name: str) -> list[dict[str, Any]]:
        """The non-dominated trials."""
        return list(self._json("GET", f"{_study(name)}/front")["items"])

    def hypervolume(self, name: str) -> dict[str, Any]:
        """How the front grew."""
        return self._json("GET", f"{_study(name)}/hypervolume")

    def routers(self, name: str) -> list[dict[str, Any]]:
        """The routers of a study, without their weights."""
        return list(self._json("GET", f"{_study(name)}/routers")["items"])

    def logs(self, name: str) -> Iterator[str]:
        """What the runs of a study wrote, line by line."""
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
        """What happens to a study, as kind and content, from its first run on until it is at rest.

        A service that is away is waited for, and asked for what happened meanwhile.

        Raises:
            ServiceError: It stays away, or refuses.
        """
        last_id: str | None = None
        patience = _Patience()
        while True:
            headers = {} if last_id is None else {"Last-Event-ID": last_id}
            try:
                # Its silence is shorter than this.
                with self._http.stream("GET", f"{_study(name)}/events", headers=headers, timeout=60.0) as response:
                    if response.status_code == 204:
                        return
                    if response.status_code != 200:
                        response.read()
                        raise _refusal(response)
                    for event in self._sse.EventSource(response).iter_sse():
                        patience = _Patience()
                        last_id = event.id or last_id
                        yield event.event, event.json()
                        if event.event in ("rest", "deleted"):
                            return
            except self._httpx.TransportError as error:
                patience.wait(self._away(error))
            except ServiceError as error:
                if error.status != 503:
                    raise
                patience.wait(error)

    def wait(
        self,
        name: str,
        timeout_s: float | None = None,
        on_look: Callable[[Mapping[str, Any]], None] = lambda study: None,
    ) -> dict[str, Any]:
        """Wait until a study neither runs nor waits for a runner; a service that is away is waited for, too.

        Args:
            name: The study.
            timeout_s: Seconds after which to give up; None for never.
            on_look: Called with the study whenever the service was asked.

        Raises:
            ServiceError: The time is over, or the service stays away.
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
                if error.status not in (None, 503):
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
        """Write the files of a study's report into a folder; gives them.

        Raises:
            ForeignResultsError: The folder holds the results of another study, or files of something else.
        """
        folder = Path(folder)
        study = self.study(name)
        files = self._json("GET", f"{_study(name)}/report")["items"]
        # A name of a file, whatever the service says.
        names = [Path(file["name"]).name for file in files]
        origin = Origin(name, datetime.fromisoformat(study["created_at"]).isoformat())
        check_results(folder, {origin}, "choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        return [self._download(f"{_study(name)}/report/{quote(one, safe='')}", folder / one) for one in names]

    def download_model(self, name: str, file: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the pruned model of a study into a ZIP archive; gives it.

        Args:
            name: The study.
            file: Path of the archive.
            overwrite: Whether to replace a file that is there.

        Raises:
            ServiceError: There is a file already, or the service refuses.
        """
        file = Path(file)
        if not overwrite and os.path.lexists(file):
            raise ServiceError(f"{file} is there already: choose another name, or replace it with overwrite=True.")
        return self._download(f"{_study(name)}/model", file)

    def _download(self, path: str, file: Path) -> Path:
        partial = file.with_name(f".partial-{os.getpid()}-{file.name}")
        try:
            with self._http.stream("GET", path) as response:
                if response.status_code != 200:
                    response.read()
                    raise _refusal(response)
                with partial.open("wb") as content:
                    for piece in response.iter_bytes():
                        content.write(piece)
            # Whole or not at all.
            os.replace(partial, file)
        except self._httpx.TransportError as error:
            raise self._away(error) from error
        finally:
            partial.unlink(missing_ok=True)
        return file

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
    """Waits longer and longer, but not for ever."""

    def __init__(self) -> None:
        self._until: float | None = None
        self._pause_s = 0.2

    def wait(self, error: ServiceError) -> None:
        now = time.monotonic()
        self._until = now + _PATIENCE_S if self._until is None else self._until
        if now > self._until:
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
