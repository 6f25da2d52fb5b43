"""A search to take populations from: generations of DetNAS's evolution with a smooth fitness.

    python benchmarks/recorded_search.py [--output benchmarks/recorded_search.json]

Writes the first and the last two of 20 generations of 50 in the small space under 300M
multiply-adds, the paper's settings. Fitness is a sum of what each layer's choice and each pair of
neighbouring choices is worth, drawn once: paths that look alike do alike, as in a supernet, so the
last generations share long prefixes. Takes seconds and needs no network.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from detnas_d2.config.tools import load_config
from detnas_d2.engine.proposals import Proposals
from detnas_d2.search_space import SPACES

RECORD = Path(__file__).with_suffix(".json")
CONFIG = Path(__file__).resolve().parents[1] / "configs/DetNAS/retinanet_coco/search.yaml"
SPACE = SPACES["detnas_small"]


def smooth_fitness(seed: int) -> dict[tuple[int, ...], float]:
    """What every choice and every pair of neighbouring choices is worth."""
    rng = random.Random(seed)
    worth: dict[tuple[int, ...], float] = {}
    for layer, choices in enumerate(SPACE.cardinalities):
        for first in range(choices):
            worth[layer, first] = rng.gauss(0, 1)
            for second in range(choices):
                worth[layer, first, second] = rng.gauss(0, 0.3)
    return worth


def recorded(seed: int = 0) -> list[list[tuple[int, ...]]]:
    """The population of every generation."""
    cfg = load_config(str(CONFIG))
    searcher = Proposals.from_config(cfg, SPACE).build_searcher()
    worth = smooth_fitness(seed)
    generations = []
    while not searcher.done:
        generations.append(list(searcher.population))
        for path in searcher.ask():
            layers = enumerate(path)
            pairs = zip(range(len(path)), path, path[1:], strict=False)
            searcher.tell(path, sum(worth[place] for place in (*layers, *pairs)))
    return generations


def load(generation: str, size: int) -> list[tuple[int, ...]]:
    """The first ``size`` candidates of "first", "previous" or "last"."""
    return [tuple(map(int, text)) for text in json.loads(RECORD.read_text())[generation][:size]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RECORD)
    generations = recorded()
    names = {"first": generations[0], "previous": generations[-2], "last": generations[-1]}
    lines = {name: ["".join(map(str, p)) for p in paths] for name, paths in names.items()}
    parser.parse_args().output.write_text(json.dumps(lines, indent=0) + "\n")
