"""Stages of networks beside a search, of one iteration each."""

from __future__ import annotations

from typing import Any

ONE_STEP = {"KIND": "train", "OPTS": ["SOLVER.MAX_ITER", 1]}


def members_and_equals(config: str) -> tuple[dict[str, Any], ...]:
    """Two members of the front inherited, fine-tuned and trained, and random ones of their cost."""
    common = {"CONFIG": config, "REPEAT": 2}
    members = {**common, "PATH": "front search"}
    return (
        {"NAME": "inherited", "KIND": "evaluate", **members, "WEIGHTS": "search"},
        {"NAME": "tuned", **ONE_STEP, **members, "WEIGHTS": "search", "TOGETHER": True},
        {"NAME": "trained", **ONE_STEP, **members},
        {
            "NAME": "equal",
            **ONE_STEP,
            **common,
            "WEIGHTS": "supernet",
            "PATH": "random",
            "LIKE": "front search",
        },
    )
