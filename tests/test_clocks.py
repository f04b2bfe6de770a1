"""Clocks that go backwards: nothing fails, and no report has negative seconds."""

import datetime
import itertools
import json
import time

import pytest

from lightning_ifru import IFRU, IFRUCallback, UnlearningRequest


class Yesterday(datetime.datetime):
    """A day earlier at every look."""

    looks = itertools.count(1)

    @classmethod
    def now(cls, tz=None):
        return datetime.datetime(2026, 11, 22, tzinfo=tz) - datetime.timedelta(days=next(cls.looks))


@pytest.fixture
def backwards(monkeypatch):
    """Let every clock go backwards at every other look."""
    for name in ("time", "perf_counter"):
        clock, looks = getattr(time, name), itertools.count(1)
        monkeypatch.setattr(
            time, name, lambda clock=clock, looks=looks: clock() - (3600 * k if (k := next(looks)) % 2 else 0)
        )
    for module in ("ledger", "auditing"):
        monkeypatch.setattr(f"lightning_ifru.{module}.datetime", Yesterday)


@pytest.mark.parametrize("locality", ["full", "local"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_seconds_are_never_negative(trained, backwards, dry_run, locality):
    trainer, _, data = trained(layers=None, callbacks=[IFRUCallback(IFRU(max_steps=1, locality=locality))])
    for user in ("person-003", "person-004"):
        report = trainer.unlearn(data, request=UnlearningRequest(users=[user]), dry_run=dry_run)
        assert report.seconds
        assert min(report.seconds.values()) >= 0
        assert (
            report.seconds["total"] == pytest.approx(sum(s for n, s in report.seconds.items() if n != "total"))
            or dry_run
        )
        assert report.expected.get("seconds", 0) >= 0
        json.loads(report.to_json())
        data.discard()
    entries = trainer.callbacks[0].ledger
    assert len(entries) == (0 if dry_run else 2)
    if not dry_run:
        assert entries[1]["time"] < entries[0]["time"]
