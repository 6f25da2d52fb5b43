#!/usr/bin/env python
"""What racing saves and what it gets wrong, replayed from a recorded search.

Record: search_net.py ... SEARCH.RACING.ENABLED True SEARCH.RACING.CONFIDENCE 1.0
Replay: racing.py output/search

With CONFIDENCE 1 nobody is dropped and the fitness on every shard is in the history. For each
confidence one JSON object: candidates raced (generations after the first), dropped, wrongly
dropped (their fitness on all images reaches the opponent's), the share of shards not evaluated,
and the mean absolute error of the fitness that the dropped get. A shard is inferred while the one
before is scored, as in the search: a drop after m shards saves S - m - 1 of S.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from detnas_d2.search import History
from detnas_d2.search.candidate import CandidateRecord
from detnas_d2.search.racing import RacingSettings, hopeless, opponent_of, paired_differences
from detnas_d2.search.racing import shard_scores as scores_of


def replay(
    records: list[CandidateRecord], parents: int, settings: RacingSettings
) -> dict[str, float]:
    """The figures of one setting; see the module."""
    raced = dropped = wrong = saved = 0
    errors: list[float] = []
    for record in records:
        opponent = opponent_of(record.generation, parents, records)
        if opponent is None or record.fitness is None:
            continue
        raced += 1
        ours, theirs = scores_of(record.metrics), scores_of(opponent.metrics)
        for seen in range(settings.min_shards, settings.shards):
            differences = paired_differences(ours[:seen], theirs)
            if not hopeless(differences, seen, settings):
                continue
            dropped += 1
            wrong += record.fitness >= opponent.fitness
            saved += settings.shards - min(seen + 1, settings.shards)
            estimate = opponent.fitness + sum(differences) / len(differences)
            errors.append(abs(estimate - record.fitness))
            break
    return {
        "confidence": settings.confidence,
        "raced": raced,
        "dropped": dropped,
        "wrongly_dropped": wrong,
        "shards_saved": round(saved / max(raced * settings.shards, 1), 4),
        "mean_fitness_error": round(sum(errors) / len(errors), 4) if errors else 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("search", help="output folder of the recorded search")
    parser.add_argument("--min-shards", type=int, default=3)
    parser.add_argument("--confidences", type=float, nargs="+", default=[0.9, 0.95, 0.99, 0.999])
    args = parser.parse_args()
    records = list(History.read(args.search))
    shards = {len(scores_of(record.metrics)) for record in records if record.fitness is not None}
    if len(shards) != 1 or 0 in shards:
        parser.error(
            f"{args.search}: not every candidate has the fitness of all shards; record the search "
            "with SEARCH.RACING.ENABLED True SEARCH.RACING.CONFIDENCE 1.0"
        )
    searcher = json.loads((Path(args.search) / "search.json").read_text())["fingerprint"][
        "searcher"
    ]
    parents = searcher["settings"].get("parents", 1)
    for confidence in args.confidences:
        settings = RacingSettings(max(shards), args.min_shards, confidence)
        print(json.dumps(replay(records, parents, settings)))


if __name__ == "__main__":
    main()
