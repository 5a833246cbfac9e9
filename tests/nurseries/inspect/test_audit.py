"""The audit of what is open: its bounds, its second look, its schedule, and what a finding sets off."""

import gc
import types

import pytest
import trio

from nurseries.inspect import KERNEL, Audit, AuditBounds
from nurseries.inspect import audit as audit_module
from nurseries.isolation import Isolation

WIDE = AuditBounds(objects=100_000, seconds=60)


def make_audit(*looks, bounds=WIDE, isolation=None):
    """An audit that sees these scopes, one after the other, and the last one from then on."""
    remaining = list(looks)

    def scopes():
        return remaining.pop(0) if len(remaining) > 1 else remaining[0]

    return Audit(scopes, lambda: KERNEL, isolation or Isolation(), bounds)


def holder(thing):
    return types.SimpleNamespace(it=thing)


async def test_an_audit_of_users_who_share_nothing_says_so():
    """With how much it looked at."""
    isolation = Isolation()
    scopes = {f"user-{number}": [holder([number]), holder({})] for number in range(20)}
    report = await make_audit(scopes, isolation=isolation).audit()
    assert (report.findings, report.unconfirmed, report.truncated, report.users) == ((), 0, None, 20)
    assert report.objects >= 20 * 4
    assert (isolation.health, isolation.audits, isolation.last) == ("healthy", 1, report)
    assert isolation.statistics()["last"]["users"] == 20


async def test_a_finding_turns_the_health_critical_and_is_told_once():
    """However often it is found, and by whichever users; another one is told again."""
    told = []
    isolation = Isolation(on_finding=told.append)
    shared, other = [], {}
    scopes = {name: [holder(shared)] for name in ("alice", "bob", "carol")}
    audit = make_audit(scopes, isolation=isolation)
    for _ in range(3):
        report = await audit.audit()
        assert [finding.type for finding in report.findings] == ["list"]
    assert (isolation.health, isolation.findings, isolation.audits) == ("critical", 1, 3)
    assert [finding.type for finding in told] == ["list"]
    for things in scopes.values():
        things.append(holder(other))
    await audit.audit()
    assert isolation.findings == 2
    assert [finding.type for finding in told] == ["list", "dict"]


@pytest.mark.parametrize("later", [{"alice": [holder([])], "bob": []}, {"alice": []}], ids=["gone", "left"])
async def test_what_only_changed_hands_is_no_finding(later):
    """A connection that one gave back and the other took during the audit was never shared; but it is counted."""
    lent = [holder("a connection")]
    isolation = Isolation()
    audit = make_audit({"alice": [lent], "bob": [lent]}, later, isolation=isolation)
    report = await audit.audit()
    assert (report.findings, report.unconfirmed) == ((), 1)
    assert isolation.health == "healthy"


async def test_an_audit_that_looks_at_too_much_is_cut_short_and_says_so():
    """And looks at others the next time, so that in the end nobody is spared."""
    isolation = Isolation()
    scopes = {f"user-{number}": [[[] for _ in range(100)]] for number in range(40)}
    shared = {}
    scopes["user-0"].append(shared)
    scopes["user-1"].append(shared)
    audit = make_audit(scopes, isolation=isolation, bounds=AuditBounds(objects=2000, seconds=60))
    report = await audit.audit()
    assert (report.truncated, report.objects) == ("objects", 2000)
    assert report.users < 40
    for _ in range(200):
        if isolation.findings:
            break
        await audit.audit()
    assert isolation.findings == 1
    assert isolation.truncated == isolation.audits


async def test_an_audit_that_takes_too_long_is_cut_short_and_says_so(monkeypatch):
    """Others run between its steps, and may take their time."""
    monkeypatch.setattr(audit_module, "OBJECTS_AT_ONCE", 10)
    scopes = {f"user-{number}": [[[] for _ in range(100)]] for number in range(4)}
    report = await make_audit(scopes, bounds=AuditBounds(objects=100_000, seconds=1e-9)).audit()
    assert report.truncated == "seconds"
    assert report.objects < 4 * 100


async def test_others_run_while_it_audits(monkeypatch):
    """It never looks at more than so many objects between two checkpoints."""
    monkeypatch.setattr(audit_module, "OBJECTS_AT_ONCE", 100)
    turns = 0
    async with trio.open_nursery() as nursery:

        async def others():
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        nursery.start_soon(others)
        await make_audit({"alice": [[[] for _ in range(5000)]]}).audit()
        nursery.cancel_scope.cancel()
    assert turns >= 50


async def test_an_audit_makes_no_work_for_the_collector():
    """Which would look through all of the process at once, and hold up everybody for that time."""
    things = [[number] for number in range(50_000)]
    audit = make_audit({"alice": [things], "bob": [[[] for _ in range(10_000)]]})
    gc.collect()
    before = gc.get_stats()[0]["collections"]
    assert (await audit.audit()).objects >= 60_000
    assert gc.get_stats()[0]["collections"] - before < 10


async def test_more_suspicions_than_can_be_looked_at_are_not_passed_over_in_silence(monkeypatch):
    """Those within the bound are looked at again."""
    monkeypatch.setattr(audit_module, "SUSPICIONS", 3)
    shared = [[] for _ in range(20)]
    scopes = {f"user-{number}": [holder(each)] for each in shared for number in (id(each), -id(each))}
    report = await make_audit(scopes).audit()
    assert report.truncated == "suspicions"
    assert len(report.findings) == 3


async def test_two_who_hold_more_than_can_be_looked_at_in_one_instant_are_not_cleared(monkeypatch):
    """The second look must not hold up everybody; what it leaves out is said."""
    monkeypatch.setattr(audit_module, "OBJECTS_OF_TWO", 50)
    shared = []
    scopes = {name: [[[] for _ in range(100)], shared] for name in ("alice", "bob")}
    report = await make_audit(scopes).audit()
    assert (report.findings, report.truncated) == ((), "objects")


async def test_audits_come_on_a_schedule(autojump_clock):
    """Every so many seconds; none in between."""
    isolation = Isolation()
    audit = make_audit({"alice": []}, isolation=isolation)
    async with trio.open_nursery() as nursery:
        await nursery.start(audit.run, 300.0)
        await trio.sleep(299)
        assert isolation.audits == 0
        await trio.sleep(600)
        assert isolation.audits == 2
        nursery.cancel_scope.cancel()


async def test_without_a_schedule_audits_come_on_demand_alone(autojump_clock):
    """0 seconds stand for never."""
    isolation = Isolation()
    audit = make_audit({"alice": []}, isolation=isolation)
    async with trio.open_nursery() as nursery:
        await nursery.start(audit.run, 0.0)
        await trio.sleep(80_000)
        assert isolation.audits == 0
        await audit.audit()
        assert isolation.audits == 1
        nursery.cancel_scope.cancel()


async def test_the_audit_lets_go_of_what_it_looked_at():
    """What it held on to while it looked is free when it is done."""
    import weakref

    class Thing:
        pass

    thing = Thing()
    gone = weakref.ref(thing)
    audit = make_audit({"alice": [[thing]]}, {})
    del thing
    await audit.audit()
    assert gone() is None
