"""The beginning of a run of ``detnas search``: its data looked at, its recipe decided and told."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from detnas_d2.utils.errors import InputError
from detnas_d2.utils.locks import LOCK_FILE, exclusive
from detnas_d2.utils.screen import duration

if TYPE_CHECKING:
    from detnas_d2.recipe.record import Record

_BEGINNINGS = frozenset({"measured", "data_cache", "config", LOCK_FILE})
"""What a start that was ended before it had decided leaves in a folder."""


def begin(asked: dict[str, Any], output: str, args: argparse.Namespace, start: float) -> Record:
    """Decides a new run, says what was chosen and how long it will take, and writes its configs.

    Raises:
        FolderBusy: the same command, given twice, is doing that.
    """
    from detnas_d2.data.checks.many_files import reading_once
    from detnas_d2.data.recognition import recognise
    from detnas_d2.engine.runtimes import ONNXRUNTIME, PYTORCH
    from detnas_d2.recipe.data_telling import data_lines, remarks
    from detnas_d2.recipe.decide import decide, read_facts
    from detnas_d2.recipe.facts import Machine
    from detnas_d2.recipe.inputs import Data, Settings
    from detnas_d2.recipe.jobs import jobs_asked, with_jobs
    from detnas_d2.recipe.likeness import alike, differences, model_record
    from detnas_d2.recipe.one_form import file_of, in_one_form
    from detnas_d2.recipe.places import FOLDER
    from detnas_d2.recipe.record import read_record
    from detnas_d2.recipe.telling import choice_lines
    from detnas_d2.recipe.weights import Start, starting_weights

    jobs = jobs_asked(args)
    like, weights = asked["like"], asked.get("weights")
    model = model_record(like) if like else None
    begun = starting_weights(weights, os.path.join(output, FOLDER)) if weights else Start()
    with ExitStack() as held:
        with reading_once():  # three looks: the folder, its datasets, and what stages will read
            found = recognise(asked["data"])
            held.enter_context(exclusive(output))
            if (other := read_record(output)) is not None:  # it has decided meanwhile
                other.check_asked(asked)
                return other
            names = found.train, found.test, found.val
            data = Data(found.declarations, *names, found.classes, remarks(found))
            data = in_one_form(data, output, file_of(like, model.data.train) if model else "")
            facts = read_facts(data, output)
        _tell(*data_lines(found, facts))
        machine = Machine.here(args.num_gpus)
        if model is None:
            runtime = ONNXRUNTIME if args.export == "onnx" else PYTORCH
            settings = Settings(output, seed=asked["seed"], start=begun, runtime=runtime)
            record = decide(asked, data, facts, machine, settings, start, jobs)
            _tell("", "Chosen:", *choice_lines(record))
        else:
            jobs = with_jobs(model, args).plan.jobs
            record = alike(model, asked, data, facts, machine, output, start, jobs)
            lines = [*choice_lines(record), *differences(model, record)]
            _tell("", f"Chosen by {os.path.relpath(like)}:", *lines)
        _tell_estimate(record)
        record = record.written()
    _tell(f"Configs, to be looked at and edited: {os.path.relpath(record.folder)}")
    return record


def _tell_estimate(record: Record) -> None:
    from detnas_d2.recipe.telling import stage_lines, total_line

    by = f"after {duration(record.used)} of looking and measuring"
    if record.plan.took:
        by = f"by what the stages of {os.path.relpath(record.asked['like'])} took"
    _tell("", f"Estimate, {by}:")
    _tell(*stage_lines(record.plan, record.schedule), total_line(record), "")


def check_empty(output: str) -> None:
    """Raises InputError for a file, or a folder with others than those that a run begins with."""
    if os.path.isfile(output):
        raise InputError(f"--output {output}: a file; expected a folder, or a new name")
    others = set(os.listdir(output)) - _BEGINNINGS if os.path.isdir(output) else set()
    if others:
        raise InputError(
            f"--output {output}: holds files of something else ({sorted(others)[0]}); name a new "
            "folder, or that of a run to go on with"
        )


def _tell(*lines: str) -> None:
    print("\n".join(lines), flush=True)
