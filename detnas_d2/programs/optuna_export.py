"""The history of a search as a study of Optuna, for its dashboard and importance analyses."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from datetime import datetime, timedelta
from types import ModuleType
from typing import Any

from detnas_d2.config.resolutions import resolutions_of
from detnas_d2.config.tools import load_config
from detnas_d2.engine.architectures import searched_space
from detnas_d2.evaluation import CandidateRecord
from detnas_d2.programs.networks import CONFIG_FILE, short_name
from detnas_d2.search import History
from detnas_d2.search.history import HEADER_FILE, RECORDS_FILE
from detnas_d2.search_space.candidates import Candidates
from detnas_d2.search_space.elastic_space import ElasticHitSpace
from detnas_d2.search_space.hit_space import HitSpace
from detnas_d2.search_space.space import PathSpace
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import digest

INDEX, SEARCH = "index", "search"
"""Attributes of a trial, the number of its record, and of a study, which search it is of."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("search", help="output folder of the search, which may still run")
    parser.add_argument(
        "--storage", required=True, metavar="URL", help="of Optuna, e.g. sqlite:///study.db"
    )
    parser.add_argument(
        "--study", metavar="NAME", help="default: the last two parts of the folder's name"
    )


def export(args: argparse.Namespace) -> None:
    study = args.study or short_name(args.search)
    added, total = export_history(args.search, args.storage, study)
    print(f"{args.storage}: study {study!r} has {total} candidates, {added} of them new")
    print(f"optuna-dashboard {args.storage} shows it")


def export_history(folder: str, storage: str, name: str) -> tuple[int, int]:
    """Adds to a study the candidates of a search that it lacks.

    A candidate is a trial: its choices are categorical parameters, its fitness the value to be
    maximised, a failed one has the state FAIL; cost, metrics, path, origin and seconds are
    attributes.

    Args:
        folder: of the search, which may still run.
        storage: URL as Optuna takes it.
        name: of the study; it is made if there is none.

    Returns:
        number of trials that were added, and of all.

    Raises:
        InputError: Optuna is missing, the folder holds no search, the storage cannot be used, or
            the study is of another search.
    """
    optuna = _optuna()
    if "://" not in storage:
        raise InputError(f"--storage {storage!r}: expected a URL, e.g. sqlite:///study.db")
    candidates, searched, history = _read(folder)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            study_name=name, storage=storage, direction="maximize", load_if_exists=True
        )
        there = _check_study(study, searched, f"--study {name!r} of {storage}")
        new = [record for record in history if record.index not in there]
        distributions = _distributions(optuna, candidates)
        for record in new:
            study.add_trial(_trial(optuna, record, candidates, distributions))
    except _storage_errors(optuna) as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"--storage {storage}: {text[0]}") from error
    return len(new), len(there) + len(new)


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError:
        raise InputError("the export needs Optuna: pip install optuna") from None
    return optuna


def _storage_errors(optuna: ModuleType) -> tuple[type[Exception], ...]:
    """A URL that cannot be read, a database that is not there, its driver that is not installed."""
    from sqlalchemy.exc import SQLAlchemyError

    return (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError)


def _read(folder: str) -> tuple[Candidates, str, History]:
    """Candidates, digest and history of a search."""
    files = [os.path.join(folder, name) for name in (CONFIG_FILE, HEADER_FILE, RECORDS_FILE)]
    for file in files:
        if not os.path.isfile(file):
            raise InputError(f"{file} is missing: expected the output folder of a search by paths")
    with open(files[1], encoding="utf-8") as text:
        try:
            searched = digest(json.load(text)["fingerprint"])
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{files[1]}: not the header of a search") from None
    cfg = load_config(files[0])
    candidates = Candidates(searched_space(cfg), resolutions_of(cfg))
    return candidates, searched, History.read(folder)


def _check_study(study: Any, searched: str, place: str) -> set[int]:
    """The numbers of the records that a study has; marks a new one."""
    trials = study.get_trials(deepcopy=False)
    known = study.user_attrs.get(SEARCH)
    if known is None and not trials:
        study.set_user_attr(SEARCH, searched)
    elif known != searched:
        raise InputError(f"{place} is of another search; choose another name with --study")
    return {trial.user_attrs[INDEX] for trial in trials if INDEX in trial.user_attrs}


def parameter_names(space: PathSpace) -> list[str]:
    """Name of the parameter of each layer, sorted as the layers are."""
    if isinstance(space, HitSpace):
        return [f"{part} {i:02d}" for part, layers in space.parts for i in range(len(layers))]
    if isinstance(space, ElasticHitSpace):
        names = parameter_names(space.widest)
        return [*names[: space.gene], "neck_channels", *names[space.gene :]]
    return [f"stage {layer.stage + 1}, layer {layer.index:02d}" for layer in space.layers]


def _distributions(optuna: ModuleType, candidates: Candidates) -> dict[str, Any]:
    categorical = optuna.distributions.CategoricalDistribution
    space = candidates.space
    named = zip(parameter_names(space), space.layers, strict=True)
    found = {name: categorical(layer.ops) for name, layer in named}
    if candidates.resolutions:
        found["resolution"] = categorical(candidates.resolutions)
    return found


def _trial(
    optuna: ModuleType,
    record: CandidateRecord,
    candidates: Candidates,
    distributions: Mapping[str, Any],
) -> Any:
    states = optuna.trial.TrialState
    path = candidates.path(record.choices)
    values: list[Any] = [*path.ops, *([] if path.resolution is None else [path.resolution])]
    trial = optuna.trial.create_trial(
        state=states.COMPLETE if record.error is None else states.FAIL,
        value=record.fitness,
        params=dict(zip(distributions, values, strict=True)),
        distributions=dict(distributions),
        user_attrs=_attributes(record),
    )
    # Optuna keeps local time without a zone.
    finished = datetime.fromisoformat(record.finished).astimezone().replace(tzinfo=None)
    trial.datetime_complete = finished
    trial.datetime_start = finished - timedelta(seconds=sum(record.seconds.values()))
    return trial


def _attributes(record: CandidateRecord) -> dict[str, Any]:
    """Metrics but for those of single classes ("bbox/AP-person"), which may be hundreds."""
    names = (INDEX, "generation", "position", "origin", "path", "macs", "params", "latency_ms")
    values = {name: getattr(record, name) for name in (*names, "error")}
    values |= {name: value for name, value in record.metrics.items() if "-" not in name}
    return {name: value for name, value in values.items() if value is not None}
