"""Does a search of several objectives find a better front than random search?

For each of SEEDS a supernet is trained, or the one that is named is taken; then NSGA-II and random
search evaluate as many candidates, within the same limits. What both ask for is evaluated once.
Their fronts are compared by hypervolume after every generation, paired by seed; then every member
is tested with the weights that it has in the supernet, and so are, with --widths, hand-made
networks of several widths that are trained from scratch. The same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

import yaml

from detnas_d2.config.reading import read_yaml
from detnas_d2.config.tools import load_config
from detnas_d2.pipeline.definition import Pipeline, read_pipeline
from detnas_d2.pipeline.experiment import read_experiment
from detnas_d2.pipeline.front_plots import draw_fronts
from detnas_d2.pipeline.fronts import compare_fronts
from detnas_d2.pipeline.run import run_pipeline
from detnas_d2.pipeline.stages import Stage
from detnas_d2.report import try_report
from detnas_d2.search_space.declared import declaration, scaled, space_of
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.figures import check_figure
from detnas_d2.utils.io import write_json, write_text

PIPELINE_FILE = "fronts.yaml"
SEARCH, RANDOM = "nsga2", "random_search"
"""Names of the stages that are compared."""
_OBJECTIVES = "['fitness', 'macs']"
_KEYS = {"name": "NAME", "kind": "KIND", "weights": "WEIGHTS", "path": "PATH", "like": "LIKE"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``diagnose.py fronts`` besides those of Detectron2's train_net.py."""
    add = parser.add_argument
    add("--output", required=True, metavar="FOLDER", help="of all seeds")
    add("--test-config", default="", metavar="FILE", help="in place of SEARCH.RETRAIN_CONFIG")
    help_ = "hand-made networks too, as many times as wide as the search's space, e.g. 1,1.5"
    add("--widths", default="", metavar="W,W", help=help_)
    add("--hand-made", default="3x3", metavar="OP", help="their operation (default: 3x3)")
    add("--train-config", default="", metavar="FILE", help="trains them (default: --test-config)")
    add("--jobs", default="1", metavar="N", help="as of run_pipeline.py")
    add("--record", default="", metavar="FILE", help="write the comparison as JSON")
    add("--plot", default="", metavar="FILE", help="draw it, .svg, .png or .pdf")


def fronts(args: argparse.Namespace) -> None:
    """``diagnose.py fronts``.

    Raises:
        InputError: a wrong option or config.
    """
    if args.plot:
        check_figure(args.plot)
    opts = tuple(word for word in args.opts if word != "--")
    file = os.path.join(args.output, PIPELINE_FILE)
    text = yaml.safe_dump(derived(args, opts), sort_keys=False, width=10**6)
    os.makedirs(args.output, exist_ok=True)
    if not os.path.isfile(file) or Path(file).read_text(encoding="utf-8") != text:
        write_text(file, text)
    args = argparse.Namespace(**{**vars(args), "config_file": file, "opts": list(opts)})
    record, plot, args.record, args.plot = args.record, args.plot, "", ""
    args.dry_run = args.verbose = False
    done = run_pipeline(args, after_stage=try_report)
    found = compare_fronts(read_experiment(file, opts).runs_of_stages)
    if found is None:
        raise InputError(f"{args.output}: no seed is done, nothing to compare")
    try_report(args.output)  # which shows it
    if plot:
        draw_fronts(found, plot)
    if record and done:
        about = {"searches": list(found.searches), "overrides": list(opts)}
        write_json(record, {**about, **found.as_dict()}, indent=1)


def derived(args: argparse.Namespace, opts: tuple[str, ...]) -> dict[str, Any]:
    """The pipeline of the comparison, from the pipeline or the config of a search that is named.

    Raises:
        InputError: no search in it, or nothing that tests what it finds.
    """
    content = read_yaml(args.config_file).data
    if isinstance(content, dict) and "STAGES" in content:
        pipeline = read_pipeline(args.config_file, tuple(_without_seeds(opts)))
        search = next((stage for stage in pipeline.stages if stage.kind == "search"), None)
        if search is None:
            raise InputError(
                f"{args.config_file}: no search stage; expected one whose supernet is used"
            )
        stages = [_entry(pipeline, stage) for stage in _sources(pipeline, search)]
        entry = _entry(pipeline, search)
    else:
        stages, entry = [], _search_entry(args.config_file, opts)
    file, own = entry["CONFIG"], entry.pop("OPTS", [])
    cfg = load_config(file, [*own, *_without_seeds(opts)])
    traded = [] if len(cfg.SEARCH.OBJECTIVES) > 1 else ["SEARCH.OBJECTIVES", _OBJECTIVES]
    for name, strategy in ((SEARCH, "evolution"), (RANDOM, "random")):
        chosen = [*own, *traded, "SEARCH.STRATEGY", strategy]
        stages.append({**entry, "NAME": name, "OPTS": chosen})
    test = _test_config(args, file, cfg)
    stages += [
        {
            "NAME": f"{name}_tested",
            "KIND": "evaluate",
            "CONFIG": test,
            "WEIGHTS": name,
            "PATH": f"front {name}",
        }
        for name in (SEARCH, RANDOM)
    ]
    stages += _by_hand(args, test, opts)
    return {"OUTPUT_DIR": args.output, "STAGES": stages}


def _without_seeds(opts: tuple[str, ...]) -> list[str]:
    pairs = zip(opts[::2], opts[1::2], strict=False)
    return [word for key, value in pairs if key != "SEEDS" for word in (key, value)]


def _sources(pipeline: Pipeline, stage: Stage) -> list[Stage]:
    """The stages that a stage needs, each after those that it starts from."""
    found: dict[str, Stage] = {}
    for source in pipeline.sources_of(stage):
        found |= {before.name: before for before in _sources(pipeline, source)}
        found[source.name] = source
    return list(found.values())


def _entry(pipeline: Pipeline, stage: Stage) -> dict[str, Any]:
    """A stage as an entry of STAGES of a file elsewhere."""
    entry: dict[str, Any] = {key: getattr(stage, name) for name, key in _KEYS.items()}
    entry = {key: value for key, value in entry.items() if value}
    entry["CONFIG"] = os.path.abspath(pipeline.file_of(stage))
    lists = {"OPTS": list(stage.opts), "MERGE": list(stage.merge)}
    return entry | {key: value for key, value in lists.items() if value}


def _search_entry(file: str, opts: tuple[str, ...]) -> dict[str, Any]:
    """The entry of a search whose supernet is trained."""
    weights = load_config(file, _without_seeds(opts)).MODEL.WEIGHTS
    if not weights:
        raise InputError(
            f"{file}: MODEL.WEIGHTS is empty; expected those of a supernet among the overrides, or "
            "the file of a pipeline that trains one"
        )
    return {"KIND": "search", "CONFIG": os.path.abspath(file), "WEIGHTS": weights}


def _test_config(args: argparse.Namespace, search: str, cfg: Any) -> str:
    if args.test_config:
        return os.path.abspath(args.test_config)
    if not cfg.SEARCH.RETRAIN_CONFIG:
        raise InputError(
            f"{search}: SEARCH.RETRAIN_CONFIG is empty; expected --test-config, for its "
            "DATASETS.TEST"
        )
    return os.path.abspath(os.path.join(os.path.dirname(search), cfg.SEARCH.RETRAIN_CONFIG))


def _by_hand(args: argparse.Namespace, test: str, opts: tuple[str, ...]) -> list[dict[str, Any]]:
    """Trainings of the hand-made network in the widths that are asked for."""
    config = os.path.abspath(args.train_config) if args.train_config else test
    stages = []
    for width in _widths(args.widths):
        cfg = load_config(config, _without_seeds(opts))
        space = scaled(space_of(cfg), width, args.hand_made)
        spaces = [*map(dict, cfg.MODEL.DETNAS.SPACES), declaration(space)]
        key = "MODEL.DETNAS.SPACE"
        stages.append(
            {
                "NAME": f"{args.hand_made}_x{width:g}",
                "KIND": "train",
                "CONFIG": config,
                "PATH": f"uniform {args.hand_made}",
                "OPTS": [f"{key}S", json.dumps(spaces), key, space.name],
            }
        )
    return stages


def _widths(text: str) -> list[float]:
    try:
        widths = [float(word) for word in text.split(",") if text]
    except ValueError:
        widths = [0.0]
    if not all(0 < width < math.inf for width in widths):
        raise InputError(f"--widths {text}: expected numbers above 0, e.g. 1,1.5")
    return widths
