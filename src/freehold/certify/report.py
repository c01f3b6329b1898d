"""What a judgement looks like: JSON, Markdown, JUnit, GitHub's annotations, a badge; and a failure with the way to repeat it.

All are made of the same certificate. Nothing here judges.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from freehold.certify.certificate import Certificate
from freehold.certify.requirements import LEVELS, Requirement, load
from freehold.certify.transcript import LARGE, Exchange
from freehold.certify.verdict import Trial, Verdict

SHOWN = 3
COLORS = ("#9f3a38", "#b58900", "#5b8c2a", "#2e7d32", "#1b5e9e")


def summary(certificate: Certificate) -> dict[str, Any]:
    """As JSON: the statement's predicate, the failures explained, and what does not hold."""
    said = certificate.predicate
    return {
        "level": said["level"], "name": said["name"], "asked": said["asked"], "void": said["void"], "late": said["late"],
        "endpoint": {key: said["endpoint"][key] for key in ("url", "model")},
        "dialects": said["endpoint"]["declared"]["dialects"], "undeclared": undeclared(certificate),
        "revision": said["suite"]["revision"], "seed": said["seed"], "began": said["began"], "expires": said["expires"],
        "key": certificate.key.id, "sha256": certificate.digest, "exchanges": len(certificate.transcript),
        "counts": dict(Counter(verdict.status for verdict in certificate.judgement.verdicts)),
        "blocking": said["blocking"], "errors": said["errors"],
        "failures": [failure(certificate, requirement, verdict) for requirement, verdict in bad(certificate)],
        "problems": list(certificate.problems), "notes": list(certificate.notes),
    }  # fmt: skip


def rows(certificate: Certificate) -> list[tuple[Requirement, Verdict]]:
    """Every judged requirement with its verdict."""
    known = {
        requirement.id: requirement for requirement in load(certificate.predicate["suite"]["revision"]).requirements
    }
    return [(known[verdict.id], verdict) for verdict in certificate.judgement.verdicts]


def bad(certificate: Certificate) -> list[tuple[Requirement, Verdict]]:
    """Those that were not passed."""
    return [pair for pair in rows(certificate) if pair[1].bad]


def undeclared(certificate: Certificate) -> list[str]:
    """Ids that did not count, because what they are about is not declared."""
    return [verdict.id for verdict in certificate.judgement.verdicts if verdict.status == "NOT_DECLARED"]


def groups(certificate: Certificate) -> list[dict[str, Any]]:
    """By group: how many of each status."""
    found: dict[str, Counter[str]] = {}
    for requirement, verdict in rows(certificate):
        found.setdefault(requirement.group, Counter())[verdict.status] += 1
    return [{"group": name} | dict(counts) for name, counts in found.items()]


def failure(certificate: Certificate, requirement: Requirement, verdict: Verdict) -> dict[str, Any]:
    """A failure explained."""
    return {
        "id": verdict.id, "status": verdict.status, "k": verdict.k, "n": verdict.n, "text": requirement.text,
        "passes": requirement.passes, "spec": requirement.spec, "note": verdict.note,
        "trials": [_trial(certificate, trial) for trial in verdict.trials[:SHOWN]],
    }  # fmt: skip


def _trial(certificate: Certificate, trial: Trial) -> dict[str, Any]:
    x = certificate.run.exchanges.get(trial.exchange)
    return {
        "exchange": trial.exchange, "path": trial.path, "expected": trial.expected, "observed": trial.observed,
        "curl": curl(certificate, x) if x is not None else "", "response": x.describe() if x is not None else "",
    }  # fmt: skip


def curl(certificate: Certificate, x: Exchange) -> str:
    """A line that makes the same request; the key comes from the environment."""
    base = certificate.predicate["endpoint"]["url"]
    words = ["curl", "-sN", "-X", x.call.method, base + x.call.path, *_header("content-type", "application/json", x)]
    for name, value in x.call.headers:
        words += ["-H", f"{name}: {value}"]
    line = shlex.join(words)
    if x.call.auth in ("good", "limited"):
        line += ' -H "x-api-key: $KEY"' if x.call.style == "x-api-key" else ' -H "authorization: Bearer $KEY"'
    if len(x.call.body) > LARGE:
        return line + f" --data-binary @body.json  # {len(x.call.body)} bytes, drawn from the seed"
    return line + (f" --data-binary {shlex.quote(x.call.body.decode())}" if x.call.body else "")


def _header(name: str, value: str, x: Exchange) -> list[str]:
    return ["-H", f"{name}: {value}"] if x.call.body else []


def explained(certificate: Certificate) -> Iterator[str]:
    """The failures for a terminal, each with the way to repeat it."""
    for requirement, verdict in bad(certificate):
        yield f"{verdict.id} {verdict.status} {verdict.k}/{verdict.n}: {requirement.text} ({requirement.spec})"
        for trial in (_trial(certificate, trial) for trial in verdict.trials[:1]):
            yield f"  expected {trial['expected']}"
            yield f"  observed {trial['observed']} - at {trial['path']} of {trial['exchange']}"
            if trial["curl"]:
                yield f"  repeat   {trial['curl']}"
        if verdict.note and not verdict.trials:
            yield f"  {verdict.note}"


def headline(certificate: Certificate) -> str:
    """The outcome in one line."""
    said = certificate.predicate
    if said["void"]:
        return f"void: a fault of the suite itself ({len(said['errors'])} scenarios); no level"
    name = LEVELS.get(said["level"], "no level")
    dialects = ", ".join(said["endpoint"]["declared"]["dialects"])
    missing = f"; {len(undeclared(certificate))} requirements not declared" if undeclared(certificate) else ""
    against = f", against {said['reference']['url']}" if said["reference"] else ""
    return f"{name} ({dialects}{missing}{against}), revision {said['suite']['revision']}"


def as_json(certificate: Certificate) -> str:
    """The summary as text."""
    return json.dumps(summary(certificate), indent=2, ensure_ascii=False)


def as_markdown(certificate: Certificate) -> str:
    """A report to read."""
    said = certificate.predicate
    lines = [
        f"# {said['endpoint']['model']} at {said['endpoint']['url']}", "", f"**{headline(certificate)}**", "",
        f"Seed `{said['seed'][:16]}`, {len(certificate.transcript)} exchanges on {said['began'][:10]}, valid until "
        f"{said['expires'][:10]}, key `{certificate.key.id[:16]}`.", "",
        "| group | pass | fail | warn | untestable | not declared |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for group in groups(certificate):
        counts = [str(group.get(status, 0)) for status in ("PASS", "FAIL", "WARN", "UNTESTABLE", "NOT_DECLARED")]
        lines.append(f"| {group['group']} | " + " | ".join(counts) + " |")
    for requirement, verdict in bad(certificate):
        found = failure(certificate, requirement, verdict)
        lines += [
            "",
            f"## {verdict.id} {verdict.status}: {requirement.text}",
            "",
            f"Specification: {requirement.spec}.",
            "",
        ]
        for trial in found["trials"]:
            seen = f"observed `{_code(trial['observed'])}` at `{trial['path']}` of {trial['exchange']}"
            lines.append(f"- expected {trial['expected']}; {seen}")
            lines += ["", "  ```sh", f"  {trial['curl']}", "  ```", ""] if trial["curl"] else []
        if not found["trials"]:
            lines.append(f"- {found['note']}")
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return text.replace("`", "'")


def as_junit(certificate: Certificate) -> str:
    """JUnit's XML, as CI systems read it: https://github.com/testmoapp/junitxml."""
    cases = []
    for requirement, verdict in rows(certificate):
        inside = ""
        if verdict.status in ("FAIL", "UNTESTABLE", "HARNESS_ERROR"):
            text = "\n".join(
                f"expected {t.expected}; observed {t.observed} at {t.path} of {t.exchange}"
                for t in verdict.trials[:SHOWN]
            )
            inside = f"<failure message={quoteattr(requirement.text)}>{escape(_clean(text or verdict.note))}</failure>"
        elif verdict.status in ("NOT_DECLARED", "WARN"):
            inside = f"<skipped message={quoteattr(_clean(f'{verdict.status} {verdict.note}'.strip()))}/>"
        name = quoteattr(f"{verdict.id} {requirement.text}")
        cases.append(f"<testcase classname={quoteattr(f'certify.{requirement.group}')} name={name}>{inside}</testcase>")
    statuses = Counter(verdict.status for verdict in certificate.judgement.verdicts)
    failed = statuses["FAIL"] + statuses["UNTESTABLE"] + statuses["HARNESS_ERROR"]
    skipped = statuses["NOT_DECLARED"] + statuses["WARN"]
    head = f'<testsuite name="freehold certify" tests="{len(cases)}" failures="{failed}" skipped="{skipped}">'
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + head + "\n" + "\n".join(cases) + "\n</testsuite>\n"


def _clean(text: str) -> str:
    """Without the characters that XML can't carry."""
    return "".join(c if c in "\t\n" or c >= " " else " " for c in text)


def as_github(certificate: Certificate) -> str:
    """Annotations of a GitHub Actions run."""
    lines = []
    for requirement, verdict in bad(certificate):
        kind = "warning" if verdict.status == "WARN" else "error"
        trial = verdict.trials[0] if verdict.trials else Trial(False, observed=verdict.note)
        text = f"{requirement.text} Expected {trial.expected}; observed {trial.observed} at {trial.path} of {trial.exchange}"
        lines.append(
            f"::{kind} title={verdict.id}::" + text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        )
    return "\n".join([*lines, f"::notice title=freehold certify::{headline(certificate)}"]) + "\n"


def as_badge(certificate: Certificate) -> str:
    """An SVG badge; it says as much as the headline's beginning."""
    said = certificate.predicate
    left, right = "interoperability", "void" if said["void"] else LEVELS.get(said["level"], "no level")
    widths = [7 * len(left) + 12, 7 * len(right) + 12]
    title = escape(f"{left}: {headline(certificate)}; {said['endpoint']['model']}, until {said['expires'][:10]}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{sum(widths)}" height="20" role="img"><title>{title}</title>'
        f'<rect width="{widths[0]}" height="20" fill="#444"/>'
        f'<rect x="{widths[0]}" width="{widths[1]}" height="20" fill="{COLORS[said["level"]]}"/>'
        '<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">'
        f'<text x="6" y="14">{left}</text><text x="{widths[0] + 6}" y="14">{escape(right)}</text></g></svg>\n'
    )


FORMATS = {"json": as_json, "markdown": as_markdown, "junit": as_junit, "github": as_github, "badge": as_badge}
