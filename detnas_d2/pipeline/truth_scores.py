"""Scores of the networks of a truth set that cost little: by supernets, and without training."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence

from detectron2.config import CfgNode

from detnas_d2.data import drop_cache, register_datasets
from detnas_d2.engine.architectures import fix_path
from detnas_d2.engine.checks.data import check_classes
from detnas_d2.engine.defaults import fall_back_to_cpu
from detnas_d2.engine.evolution_search import load_supernet
from detnas_d2.engine.training_free import relu_code_score, training_batch
from detnas_d2.evaluation.build import candidate_evaluator
from detnas_d2.evaluation.settings import EvaluationSettings
from detnas_d2.search_space.space import Path, PathSpace
from detnas_d2.utils.errors import CandidateFailed, InputError
from detnas_d2.utils.io import digest, sha256_of
from detnas_d2.utils.line_log import append, open_lines

SCORES_FILE = "scores.jsonl"

Tell = Callable[[str], None]


class ScoreLog:
    """Scores in a folder by (what gave them, path); appended and synced, a torn line is dropped."""

    def __init__(self, folder: str) -> None:
        self.file = os.path.join(folder, SCORES_FILE)
        self._found: dict[tuple[str, str], float | None] = {}
        for line in open_lines(self.file).splitlines():
            try:
                values = json.loads(line)
                self._found[values["by"], values["path"]] = values["score"]
            except (ValueError, TypeError, KeyError):
                raise InputError(
                    f"{self.file}: a line is no score; delete the file, it takes minutes to make"
                ) from None

    def append(self, by: str, path: str, score: float | None) -> None:
        """``score``: None for a network that has none."""
        score = score if score is not None and math.isfinite(score) else None
        self._found[by, path] = score
        append(self.file, (json.dumps({"by": by, "path": path, "score": score}) + "\n").encode())

    def missing(self, by: str, paths: Sequence[Path]) -> list[Path]:
        return [path for path in paths if (by, str(path)) not in self._found]

    def of(self, by: str, paths: Sequence[Path]) -> dict[str, float]:
        """Path text -> score, of those that have one."""
        found = {str(path): self._found.get((by, str(path))) for path in paths}
        return {path: score for path, score in found.items() if score is not None}


def supernet_fitness(
    cfg: CfgNode, weights: str, paths: Sequence[Path], log: ScoreLog, tell: Tell
) -> dict[str, float]:
    """Fitness of paths as the search of ``cfg`` would find it, path text -> fitness.

    Args:
        weights: of the supernet.
        log: what is in it is not evaluated again.

    Raises:
        InputError: the weights, or what they are evaluated on, do not fit.
    """
    if not os.path.isfile(weights):
        raise InputError(f"--supernet {weights}: no such file")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = weights, os.path.dirname(log.file)
    fall_back_to_cpu(cfg)
    settings = EvaluationSettings.from_config(cfg)
    settings.check()
    check_classes(cfg)
    settings = EvaluationSettings.from_config(cfg)  # with the number of classes
    by = f"supernet {digest([sha256_of(weights), settings.fingerprint()])}"
    missing = log.missing(by, paths)
    if missing:
        model = load_supernet(cfg)
        with candidate_evaluator(settings, model) as evaluator:
            for number, (path, outcome) in enumerate(evaluator.evaluate_many(missing), start=1):
                fitness = None if isinstance(outcome, CandidateFailed) else outcome.fitness
                log.append(by, str(path), fitness)
                told = str(outcome) if fitness is None else f"{settings.metric} {fitness:.2f}"
                tell(f"{weights} [{number}/{len(missing)}]: {told}  {path}")
        drop_cache(cfg.OUTPUT_DIR)
    return log.of(by, paths)


def untrained_scores(
    cfg: CfgNode, space: PathSpace, paths: Sequence[Path], log: ScoreLog
) -> dict[str, float]:
    """:func:`relu_code_score` of the networks that ``cfg`` trains, path text -> score."""
    cfg = cfg.clone()
    cfg.defrost()
    fall_back_to_cpu(cfg)
    fix_path(cfg, space, str(space.first_path()))
    register_datasets(cfg)
    check_classes(cfg)
    by = f"relu codes {digest(cfg.dump())}"
    missing = log.missing(by, paths)
    batch = training_batch(cfg) if missing else []
    for path in missing:
        fix_path(cfg, space, str(path))
        log.append(by, str(path), relu_code_score(cfg, batch))
    return log.of(by, paths)
