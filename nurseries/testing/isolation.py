"""Two scopes that must have nothing in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nurseries.inspect import KERNEL, Finding, Infrastructure, roots_of, shared_between

if TYPE_CHECKING:
    from collections.abc import Sequence


def assert_isolated(a: object, b: object, *, infrastructure: Infrastructure = KERNEL) -> None:
    """Fail if anything that can change is in reach of both: by attributes, items, closures, classes or modules.

    Args:
        a: a request, a session, an agent, or anything else that belongs to one user.
        b: the like of another user.
        infrastructure: what they may share; `nurseries.inspect.reach` says what is looked into.

    Raises:
        AssertionError: there is something; the message has the way to it from either side.
    """
    __tracebackhide__ = True
    findings = shared_between({"a": roots_of(a), "b": roots_of(b)}, infrastructure=infrastructure)
    if findings:
        raise AssertionError(listing(findings))


def listing(findings: Sequence[Finding]) -> str:
    """Return the findings as text, each with the way to it from either side."""
    lines = [f"in reach of both, and can change: {len(findings)}"]
    for finding in findings:
        lines.append(f"- {finding.type}, held as {finding.kind}")
        lines += [f"    {owner}: {way}" for owner, way in finding.paths]
    return "\n".join(lines)
