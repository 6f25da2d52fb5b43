"""What was decided for a run, kept next to its configs: the same command reads it again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from detnas_d2.recipe.choice import Recipe
from detnas_d2.recipe.facts import DataFacts
from detnas_d2.recipe.inputs import Data, Settings
from detnas_d2.recipe.places import FOLDER, record_file
from detnas_d2.recipe.rates import Rates
from detnas_d2.recipe.refitting import Change
from detnas_d2.recipe.schedule import Plan, Schedule
from detnas_d2.recipe.weights import Start
from detnas_d2.recipe.writing import PIPELINE_FILE, texts_of, write_files
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import digest, write_json
from detnas_d2.utils.screen import duration

VERSION = 1


@dataclass(frozen=True)
class Record:
    """A run's decisions.

    Attributes:
        asked: option -> value, as it was asked for.
        plan: with the speeds that were measured, or that the last stages had.
        machine: for people.
        seconds: that the run may take, None without a limit.
        used: seconds that it has taken, up to the end of the last stage, without those of a stage
            that has begun and is not done, which are told by its folder.
        files: name of a config -> digest of its text, as it was written; empty while they are not.
        changes: what was decided when stages were late.
    """

    asked: Mapping[str, Any]
    plan: Plan
    schedule: Schedule
    data: Data
    settings: Settings
    machine: str
    seconds: float | None
    used: float
    files: Mapping[str, str]
    changes: tuple[Change, ...] = ()

    @property
    def folder(self) -> str:
        return os.path.join(self.settings.output, FOLDER)

    @property
    def pipeline_file(self) -> str:
        return os.path.join(self.folder, PIPELINE_FILE)

    def is_edited(self) -> bool:
        """Whether a config is not as it was written: then the user's numbers count."""
        for name, mark in self.files.items():
            try:
                with open(os.path.join(self.folder, name), encoding="utf-8") as text:
                    if digest(text.read()) != mark:
                        return True
            except OSError:
                return True
        return False

    def check_asked(self, asked: Mapping[str, Any]) -> None:
        """Raises InputError if a run is asked for that is another than the one begun."""
        before = {"like": "", **self.asked}  # of a run that was begun without
        changed = [
            f"--{key} {_shown(key, before.get(key))} then, {_shown(key, value)} now"
            for key, value in asked.items()
            if value != before.get(key)
        ]
        if changed:
            raise InputError(
                f"{self.settings.output}: begun with other options ({'; '.join(changed)}); repeat "
                "those, as detnas resume does, or name another --output"
            )

    def written(self) -> Record:
        """The record, it and its configs written.

        The decision is on disk before the configs, which a process that is killed in between leaves
        to the next one (:meth:`whole`).
        """
        replace(self, files={}).save()
        texts = texts_of(self.plan, self.schedule, self.data, self.settings)
        write_files(self.folder, texts)
        files = {name: digest(text) for name, text in texts.items()}
        written = replace(self, files=files)
        written.save()
        return written

    def whole(self) -> Record:
        """The record with all its configs written."""
        return self if self.files else self.written()

    def save(self) -> None:
        file = record_file(self.settings.output)
        write_json(file, {"version": VERSION, **asdict(self)}, indent=1)


def _shown(option: str, value: Any) -> str:
    """An option's value as a person would say it."""
    if value in (None, ""):
        return "none"
    return duration(value) if option == "time" else str(value)


def read_record(output: str) -> Record | None:
    """The record of a run's folder, None if it has none; see :func:`known_record`."""
    return known_record(output) if os.path.exists(record_file(output)) else None


def known_record(output: str) -> Record:
    """The record of a run's folder, which has one.

    Raises:
        InputError: it cannot be read.
    """
    file = record_file(output)
    try:
        with open(file, encoding="utf-8") as text:
            value = json.load(text)
        if value.pop("version") != VERSION:
            raise ValueError("of another version")
        return _record(value)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{file}: not what detnas search wrote ({error}); run_pipeline.py --config-file "
            f"{os.path.join(os.path.dirname(file), PIPELINE_FILE)} goes on with the run"
        ) from None


def _record(value: dict[str, Any]) -> Record:
    plan = value["plan"]
    recipe, facts = plan["recipe"], plan["data"]
    recipe |= {key: tuple(recipe[key]) for key in ("anchors", "ratios")}
    recipe["reasons"] = tuple((key, why) for key, why in recipe["reasons"])
    facts["aspects"] = tuple(facts["aspects"])
    data = value["data"]
    data |= {key: tuple(data.get(key, ())) for key in ("declarations", "classes", "remarks")}
    settings = value["settings"]
    settings["start"] = Start(**settings["start"])
    parts = Recipe(**recipe), DataFacts(**facts), Rates(**plan["rates"])
    # A run may have been begun without.
    later: dict[str, Any] = {"jobs": 1, "family": 1, "front": None, "took": {}}
    made = Plan(*parts, **{name: plan.get(name, value) for name, value in later.items()})
    return Record(
        **value
        | {
            "plan": made,
            "schedule": _schedule(value["schedule"], made),
            "data": Data(**data),
            "settings": Settings(**settings),
            "changes": tuple(Change(**change) for change in value.get("changes", ())),
        }
    )


def _schedule(value: dict[str, Any], plan: Plan) -> Schedule:
    """Also one that has the number of networks that were not given up."""
    compared = value.pop("compared", None)
    value["given_up"] = tuple(value.get("given_up", ()))
    schedule = Schedule(**value)
    if compared is None:
        return schedule
    return replace(schedule, given_up=tuple(plan.comparisons(schedule)[compared:]))
