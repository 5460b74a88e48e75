"""Times of trials are in UTC: until now each was local, without saying where."""

import json
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_AT_ONCE = 10_000
_QUARTER = timedelta(minutes=15)


def upgrade() -> None:
    """Give each trial's times their zone.

    A trial that a search finished says in UTC, too, when that was: so the clock of the machine that wrote is known.
    Others, of Optuna's clients or not finished, say nothing: they count as written where the upgrade runs.
    """
    connection = op.get_bind()
    trial = sa.table("trial", *map(sa.column, ("id", "user_attributes", "started_at", "completed_at")))
    times: list[dict[str, object]] = []
    while True:
        last = times[-1]["of_id"] if times else 0
        rows = connection.execute(sa.select(trial).where(trial.c.id > last).order_by(trial.c.id).limit(_AT_ONCE)).all()
        if not rows:
            break
        for row in rows:
            started, completed = _in_utc(row.started_at, row.completed_at, row.user_attributes)
            times.append({"of_id": row.id, "started": started, "completed": completed})
    for name in ("started_at", "completed_at"):
        op.drop_column("trial", name)
        op.add_column("trial", sa.Column(name, sa.String(40)))
    if times:
        written = sa.update(trial).where(trial.c.id == sa.bindparam("of_id"))
        written = written.values(started_at=sa.bindparam("started"), completed_at=sa.bindparam("completed"))
        connection.execute(written, times)


def _in_utc(started: str | None, completed: str | None, attributes: str | None) -> tuple[str | None, str | None]:
    """When a trial began and ended, from local times and what its attributes say."""
    begins, ends, known = _moments(started), _moments(completed), _finished_at(attributes)
    if completed is not None and known is not None:
        # By so much the clock that wrote was ahead of UTC.
        ahead = datetime.fromisoformat(completed) - known.replace(tzinfo=None)
        if abs(ahead) <= timedelta(hours=14) and not ahead % _QUARTER:
            # Where it is the clock of this machine, the zone's rules hold: summer time may have come or gone meanwhile.
            if started is not None and known not in ends:
                begins = [(datetime.fromisoformat(started) - ahead).replace(tzinfo=UTC)]
            ends = [known]
    if not begins or not ends:
        return _text(begins), _text(ends)
    spans = [(begin, end) for end in ends for begin in begins if begin <= end]
    # There is none where it was begun by a clock that was ahead of the one by which it ended.
    begin, end = min(spans, key=lambda span: span[1] - span[0]) if spans else (ends[0], ends[0])
    return _text([begin]), _text([end])


def _finished_at(attributes: str | None) -> datetime | None:
    """The moment that a search wrote beside a trial's results."""
    said = json.loads(attributes or "{}").get("finished_at")
    try:
        found = datetime.fromisoformat(said)
    except (TypeError, ValueError):
        return None
    return None if found.tzinfo is None else found.astimezone(UTC)


def _moments(text: str | None) -> list[datetime]:
    """The moments at which this machine's clock shows a time: two, where summer time ends."""
    if text is None:
        return []
    local = datetime.fromisoformat(text)
    return [local.replace(fold=fold).astimezone(UTC) for fold in (0, 1)]


def _text(moments: list[datetime]) -> str | None:
    return moments[0].isoformat(timespec="microseconds") if moments else None
