"""A NOTICE file: whose work is in it, under which licences, the statements these ask for, and what a distributor has to do.

Knows no files and no terminal.
"""

from __future__ import annotations

from freehold.provenance.bom.bill import TOOL, Bill, licence_url
from freehold.provenance.licences import UNKNOWN, identifiers, lookup

RULE = "-" * 80


def render(bill: Bill) -> str:
    """The text."""
    artefact = bill.artefact
    lines = [f"{artefact.name} {bill.version}".strip(), ""]
    lines += dict.fromkeys(artefact.copyrights)
    lines += ["", f"Written by {tool_line(bill)}. Not legal advice.", "", RULE, "", "Components", ""]
    used: dict[str, None] = {}
    for thing in [bill.subject, *(thing for thing in bill.things if thing.kind != "provider")]:
        expression = bill.concluded(thing)
        lines.append(f"* {thing.id} ({thing.kind}): {expression or 'licence unknown'}")
        if thing.evidence:
            lines.append(f"  read from: {thing.evidence}")
        used |= dict.fromkeys(key for key in identifiers(expression) if key != UNKNOWN)
    if statements := [lookup(key).statement for key in used if lookup(key).statement]:
        lines += ["", RULE, "", "Statements", "", *statements]
    lines += ["", RULE, "", "Licences", ""]
    for key in used:
        lines.append(f"* {key}: {lookup(key).name}" + (f" <{url}>" if (url := licence_url(key)) else ""))
    if duties := _duties(bill):
        lines += ["", RULE, "", "Who passes this on has to", "", *duties]
    return "\n".join(lines) + "\n"


def tool_line(bill: Bill) -> str:
    """Which program wrote it, and when."""
    return f"{TOOL} on {bill.created.date().isoformat()}"


def _duties(bill: Bill) -> list[str]:
    found = [f"* {duty.text} ({duty.licence}, {duty.clause})" for duty in bill.judgement.duties if duty.now]
    return list(dict.fromkeys(found))
