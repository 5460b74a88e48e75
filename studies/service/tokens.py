"""Access to the service: tokens of which only hashes are kept, and the sessions of browsers."""

from __future__ import annotations

import enum
import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from studies.errors import StudiesError
from studies.sql import schema
from studies.store.lease import clock
from studies.store.names import Part

_SECRET_BYTES = 32
_MAX_NAME = 100
# A browser that is closed forgets its session earlier.
SESSION_S = 12 * 3600.0

_token, _session = schema.access_token.c, schema.browser_session.c


class Role(enum.StrEnum):
    """Rights of the owner of a token: to see everything, or also to begin, stop and delete studies."""

    READER = "reader"
    EDITOR = "editor"


class TokenError(StudiesError):
    """A token cannot be added or removed."""


@dataclass(frozen=True)
class TokenRecord:
    """A token without its secret."""

    name: str  # its owner, or its purpose
    role: Role  # rights of its owner
    created_at: datetime  # when it was added, UTC


@dataclass(frozen=True)
class Session:
    """A browser whose user has shown a token."""

    token: TokenRecord
    csrf: str  # value that requests that change something must repeat, and pages of other sites cannot know


class Tokens(Part):
    """Tokens and sessions. Secrets are random, so a plain hash of one says nothing of it."""

    def add(self, name: str, role: Role) -> str:
        """Adds a token.

        Args:
            name: Unique name.
            role: Rights of its owner.

        Returns:
            The secret, which cannot be read again.

        Raises:
            TokenError: The name is taken, or is none.
        """
        if not name.strip() or not name.isprintable() or len(name) > _MAX_NAME:
            raise TokenError(f"The token's name is {name!r}: expected up to {_MAX_NAME} printable characters.")
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        row = {"name": name, "role": role.value, "sha256": _hash(secret), "created_at": datetime.now(UTC)}
        try:
            self._database.write(lambda connection: connection.execute(sa.insert(schema.access_token), row))
        except sa.exc.IntegrityError as error:
            raise TokenError(
                f"There is a token {name!r} already: choose another name, or remove it with `ftp-search token remove`."
            ) from error
        return secret

    def remove(self, name: str) -> None:
        """Removes a token, and with it the sessions that were begun with it.

        Raises:
            TokenError: There is none of this name.
        """

        def work(connection: Connection) -> int:
            return connection.execute(sa.delete(schema.access_token).where(_token.name == name)).rowcount

        if not self._database.write(work):
            names = ", ".join(repr(token.name) for token in self.all()) or "none"
            raise TokenError(f"There is no token {name!r}: there are {names}.")

    def all(self) -> list[TokenRecord]:
        """Every token, oldest first."""
        selected = sa.select(schema.access_token).order_by(_token.id)
        return self._database.read(lambda connection: [_record(row) for row in connection.execute(selected)])

    def exist(self) -> bool:
        """True if there is any."""
        selected = sa.select(sa.exists(sa.select(_token.id)))
        return bool(self._database.read(lambda connection: connection.execute(selected).scalar()))

    def find(self, secret: str) -> TokenRecord | None:
        """The token with this secret; None if there is none."""
        found = self._database.read(lambda connection: _with_secret(connection, secret))
        return None if found is None else _record(found)

    def begin_session(self, secret: str) -> tuple[str, Session] | None:
        """Begins a session of a browser; its key, which cannot be read again, and the session.

        None if there is no token with this secret. Sessions that are over are forgotten.
        """
        key, csrf = secrets.token_urlsafe(_SECRET_BYTES), secrets.token_urlsafe(_SECRET_BYTES)

        def work(connection: Connection) -> Session | None:
            now = clock(connection)
            connection.execute(sa.delete(schema.browser_session).where(_session.expires_at < now))
            found = _with_secret(connection, secret)
            if found is None:
                return None
            row = {"sha256": _hash(key), "token_id": found.id, "csrf": csrf, "expires_at": now + SESSION_S}
            connection.execute(sa.insert(schema.browser_session).values(**row))
            return Session(_record(found), csrf)

        session = self._database.write(work)
        return None if session is None else (key, session)

    def session(self, key: str) -> Session | None:
        """The session with this key; None if there is none, or it is over."""
        joined = schema.browser_session.join(schema.access_token)
        selected = sa.select(schema.access_token, _session.csrf).select_from(joined)

        def work(connection: Connection) -> Row[Any] | None:
            where = sa.and_(_session.sha256 == _hash(key), _session.expires_at >= clock(connection))
            return connection.execute(selected.where(where)).first()

        found = self._database.read(work)
        return None if found is None else Session(_record(found), str(found.csrf))

    def end_session(self, key: str) -> None:
        """Ends a session; one that is over already stays so."""
        where = _session.sha256 == _hash(key)
        self._database.write(lambda connection: connection.execute(sa.delete(schema.browser_session).where(where)))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _with_secret(connection: Connection, secret: str) -> Row[Any] | None:
    # Found by the hash, which nobody can bring close to another one bit by bit.
    return connection.execute(sa.select(schema.access_token).where(_token.sha256 == _hash(secret))).first()


def _record(row: Row[Any]) -> TokenRecord:
    return TokenRecord(row.name, Role(row.role), row.created_at)
