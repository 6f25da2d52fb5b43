"""A page about the operators on one GPU, from what its benchmarks wrote.

    python benchmarks/verdict.py benchmarks/results/<gpu>.json

Writes benchmarks/results/<gpu>.md: for every case against every baseline whether ours is faster,
slower or failed, and by how much, beside what the model expects; and what the self-check chose.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

EVEN = 0.03
"""Of a ratio: closer to 1 there is no winner."""


def verdict(ratio: float) -> str:
    """In words, of the baseline's time over ours."""
    if abs(ratio - 1) <= EVEN:
        return "even"
    return f"faster, {ratio:.2f}x" if ratio > 1 else f"slower, {ratio:.2f}x"


def read(lines: Iterable[str]) -> list[dict]:
    """The records of a file.

    Raises:
        ValueError: a line that is not a JSON object, with its number.
    """
    found = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"line {number}: expected a JSON object, got {line.strip()[:60]!r}")
        found.append(record)
    return found


def page(records: Sequence[dict], name: str) -> str:
    """The page, as markdown.

    Args:
        records: of the benchmarks, in their order.
        name: of the file that they come from.
    """
    machine = next((r["machine"] for r in records if "machine" in r), {})
    compared = [r for r in records if "ratio" in r and "ours_ms" in r and not _best(r)]
    failed = [r for r in records if "failed" in r]
    chosen = [r for r in records if r.get("bench") == "self_check"]
    title = machine.get("gpu", "unknown GPU")
    text = [f"# Operators on {title}", ""]
    text += [
        f"Made by `benchmarks/verdict.py` of `{name}`, which `benchmarks/gpu.sh` wrote; torch "
        f"{machine.get('torch', 'unknown')}. On the device: work on the GPU alone. Model: what "
        "`benchmarks/device_model.py` expects of it, no measurement. Call: from Python, launches "
        "included.",
        "",
        _summary(compared, failed),
        "",
    ]
    if failed:
        text += ["## Failed", "", *(f"- {_what(r)}: {r['failed']}" for r in failed), ""]
    for bench in dict.fromkeys(r["bench"] for r in compared):
        text += [f"## {bench}", "", *_table([r for r in compared if r["bench"] == bench]), ""]
    if chosen:
        text += ["## Chosen by the self-check", "", *_choices(chosen), ""]
    return "\n".join(text)


def _best(record: dict) -> bool:
    """Whether the record repeats that of the best baseline."""
    return record["baseline"].startswith("best (")


def _ratio(record: dict) -> float:
    return record.get("device_ratio", record["ratio"])


def _what(record: dict) -> str:
    return record.get("case") or record.get("step") or "unknown"


def _summary(compared: Sequence[dict], failed: Sequence[dict]) -> str:
    words = Counter(verdict(_ratio(r)).split(",")[0] for r in compared)
    counts = [f"{words[word]} {word}" for word in ("faster", "even", "slower")]
    return f"{len(compared)} comparisons: {', '.join(counts)}; {len(failed)} failed."


def _table(records: Sequence[dict]) -> list[str]:
    lines = [
        "| case | against | on the device | ours, ms | model | theirs, ms | model | call |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in records:
        cells = [
            r["case"],
            r["baseline"],
            verdict(_ratio(r)),
            _ms(r, "ours_device_ms", "ours_ms"),
            _ms(r, "ours_model_ms"),
            _ms(r, "baseline_device_ms", "baseline_ms"),
            _ms(r, "baseline_model_ms"),
            verdict(r["ratio"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _ms(record: dict, *fields: str) -> str:
    return next((f"{record[field]:.3f}" for field in fields if field in record), "")


def _choices(records: Sequence[dict]) -> list[str]:
    lines = ["| class of work | runs as | ms | why |", "|---|---|---|---|"]
    for r in records:
        times = [f"{key[:-3]} {r[key]:.3f}" for key in r if key.endswith("_ms")]
        lines.append(f"| {r['case']} | {r['use']} | {', '.join(times)} | {r.get('why', '')} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="JSON lines of the benchmarks")
    args = parser.parse_args()
    records = read(args.results.read_text(encoding="utf-8").splitlines())
    text = page(records, args.results.name)
    args.results.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
