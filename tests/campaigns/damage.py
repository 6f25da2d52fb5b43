"""Damages the folder of a finished or interrupted run and starts it again.

    python tests/campaigns/damage.py [--trials N] [--seed S] [--only TEXT] [--folder FOLDER]

Prints how each case ended; the exit status is 1 if one did not as :mod:`damage_cases` says.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.campaigns.damage_cases import CASES, Place
from tests.campaigns.reference import Reference, campaign


def trial(reference: Reference, name: str) -> tuple[bool, str]:
    """Damages what the case says; whether the run then ended as it should, and how."""
    reference.restore()
    damage, expected = CASES[name]
    damage(Place(reference.place))
    return reference.verdict(expected)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=len(CASES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--folder", type=Path, help="where the reference stays; default: nowhere")
    args = parser.parse_args()

    names = [name for name in CASES if args.only in name]
    with tempfile.TemporaryDirectory() as scratch:
        reference = Reference((args.folder or Path(scratch)).resolve() / "damage")
        wrong = campaign(names, lambda name: trial(reference, name), args.trials, args.seed)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
