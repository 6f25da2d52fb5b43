"""The stages of a pipeline file: their keys, what each may say, and where a stage may write.

KIND ``train`` trains, ``evaluate`` tests a network with WEIGHTS as they are, ``search`` searches a
supernet. CONFIG is relative to the file. WEIGHTS is an earlier stage (its final weights; those of a
search are in the supernet, of the path that PATH takes from the same search) or a file. PATH is an
earlier search stage (its best path), ``uniform OP``, ``random NUMBER`` (the first random path that
keeps the limits of the first search stage; another one for another SEED of the config), the path
itself, or a member of a search's front (``front SEARCH``, see below); with a resolution
(``@160``), where that was searched, the stage's images are of it. LIKE is an earlier search
stage, or a member of its front: random paths then cost what its best one, or the member, does, to
5 %.
OPTS is a list of KEY, VALUE. REPEAT: n means n stages, NAME_1 to NAME_n, of one ROW, which start
from the stage of their own number where WEIGHTS, PATH or MERGE name a repeated one.
With PATH random they are n networks (``random 1`` to ``random n``); otherwise they differ in their
SEED (the config's, and a hundred more each time), and random networks (PATH, RANDOM) with it.
With PATH ``front SEARCH`` they are n members of the front that a search of several objectives
found, in even steps from the cheapest to the last, the recommended one among them if n is not 2
(:meth:`detnas_d2.search.front_file.Front.spread`); ``front SEARCH 2/4`` is the second of four.
WEIGHTS is the same search for the member's own weights; with it an evaluation without REPEAT tests
every member of the front, whose scores are in its ``members.json`` (no row of a table).
LIKE ``front SEARCH`` next to PATH random makes network k of n like member k of n.
TOGETHER: true, of a training with REPEAT of several networks: they are trained in one process, each
batch is loaded once, and every network takes its update on it; results are those of trainings apart
(:mod:`detnas_d2.engine.trainers.together`).
Where the search is one of Hit-Detectors by sampling (MODEL.HIT.STRATEGY), its path is a genotype:
it gives the stage's MODEL.HIT operations, frame and channels. A PATH that is written out, uniform
or random without LIKE is then of the first search's space, unless the config has a DetNAS backbone.
Stages with the same ROW share a row of the table (mean and spread). FOLDER, relative to OUTPUT_DIR,
is where a stage works, instead of OUTPUT_DIR/NAME: pipelines that name the same folder for the same
stage share its result, and the first one to need it runs it. It lies below OUTPUT_DIR or next to it
(``../NAME``): a pipeline writes nowhere else.

Hit-Detector has two more kinds, ``screen`` and ``gradient`` (search). MERGE lists earlier stages
of these kinds whose result (sub-space, genotype) is merged into the config. RANDOM is a seed: in
the place of the merged genotype stands a random one of the same sub-spaces and cost.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from detnas_d2.engine.gradient_search import GENOTYPE_FILE, SUB_SPACE_FILE
from detnas_d2.utils.errors import InputError

FRAGMENTS = {"screen": SUB_SPACE_FILE, "gradient": GENOTYPE_FILE}
"""Kind of a stage -> its result as a config fragment."""
SEED_STEP = 100
"""Between the seeds of repeated stages: the seeds of SEEDS lie between them."""
OWN_SEED_STEP = 1000
"""Between the runs of SEEDS, where a stage's OPTS or RANDOM give a seed of its own."""
KINDS = ("train", "evaluate", "search", "screen", "gradient")
_TEXTS = ("KIND", "CONFIG", "WEIGHTS", "PATH", "LIKE", "ROW", "FOLDER")
_MEMBER = re.compile(r"front (?P<search>.+?)(?: (?P<number>[1-9]\d*)/(?P<count>[1-9]\d*))?")
_MAX_NAME = 200  # bytes; file systems take 255


class PipelineError(InputError):
    """A pipeline file that does not say what it should, or disagrees with what is on disk."""


@dataclass(frozen=True)
class Stage:
    """One stage; see the module's description of the keys."""

    name: str
    kind: str
    config: str
    weights: str = ""
    path: str = ""
    row: str = ""
    opts: tuple[str, ...] = ()
    merge: tuple[str, ...] = ()
    random: int | None = None
    like: str = ""
    folder: str = ""
    member: tuple[int, int] | None = None
    """(number, count) where PATH or LIKE is one of ``count`` members of the front of a search."""
    whole: bool = False
    """PATH is every member of the front of a search."""
    together: bool = False
    number: int = 0
    """Of a repeated stage, from 0: so many steps lie between its seed and the config's."""


def read_stages(file: str, entries: list[Any]) -> tuple[Stage, ...]:
    """The stages that STAGES of a file lists, repeated ones written out.

    Raises:
        PipelineError: naming the file, the stage and the key.
    """
    stages: list[Stage] = []
    for entry in entries:
        for number, single in _repeats(file, entry, stages):
            stages.append(_stage(file, single, number, stages))
    return tuple(stages)


def _repeats(file: str, entry: Any, before: list[Stage]) -> list[tuple[int, Any]]:
    """(Stage.number, entry) of the stages that an entry with REPEAT stands for."""
    if not isinstance(entry, dict) or "REPEAT" not in entry:
        return [(0, entry)]
    count, name = entry["REPEAT"], entry.get("NAME")
    if type(count) is not int or count < 1:
        raise PipelineError(f"{file}: stage {name!r}: REPEAT {count!r}, expected 1 or more")
    known = {stage.name for stage in before}

    def numbered(text: Any, number: int) -> Any:
        own = f"{text}_{number}"
        return own if text not in known and own in known else text

    entries = []
    for number in range(1, count + 1):
        single = {key: value for key, value in entry.items() if key != "REPEAT"}
        single["NAME"], single["ROW"] = f"{name}_{number}", entry.get("ROW", name)
        for key in {"WEIGHTS", "PATH"} & set(entry):
            single[key] = numbered(entry[key], number)
        if "MERGE" in entry:
            single["MERGE"] = [numbered(source, number) for source in entry["MERGE"]]
        if "FOLDER" in entry:
            single["FOLDER"] = f"{entry['FOLDER']}_{number}"
        members = [key for key in ("PATH", "LIKE") if _is_open_member(entry.get(key), known)]
        single |= {key: f"{entry[key]} {number}/{count}" for key in members}
        networks = entry.get("PATH") == "random" or "PATH" in members
        if entry.get("PATH") == "random":
            single["PATH"] = f"random {number}"
        entries.append((0 if networks else number - 1, single))
    return entries


def _is_open_member(text: Any, known: Collection[str]) -> bool:
    """Whether a text is ``front SEARCH``, without the number of a member."""
    if not isinstance(text, str) or text in known:
        return False
    found = _MEMBER.fullmatch(text)
    return found is not None and not found["number"]


def _whole_front(entry: Mapping[str, Any], known: Collection[str]) -> str:
    """The search whose whole front an evaluation is of, "" for any other stage."""
    text = entry.get("PATH")
    if entry["KIND"] != "evaluate" or not _is_open_member(text, known):
        return ""
    search = str(text).removeprefix("front ")
    return search if search in known and search == entry.get("WEIGHTS") else ""


def _member(text: str, known: Collection[str]) -> tuple[str, tuple[int, int] | None]:
    """Search, and (number, count), of ``front SEARCH NUMBER/COUNT``; any other text as it is.

    Args:
        known: names of the stages before.

    Raises:
        PipelineError: what is wrong with it.
    """
    found = None if text in known else _MEMBER.fullmatch(text)
    if found is None:
        return text, None
    if found["search"] not in known:
        raise PipelineError(f"{text!r}: {found['search']!r} is no earlier stage; expected a search")
    if not found["number"]:
        raise PipelineError(
            f"{text!r}: expected REPEAT next to it, how many members, or one of them, e.g. "
            f"'front {found['search']} 1/4'"
        )
    number, count = int(found["number"]), int(found["count"])
    if number > count:
        raise PipelineError(f"{text!r}: expected NUMBER/COUNT, e.g. {count}/{number}")
    return found["search"], (number, count)


def _stage(file: str, entry: Any, number: int, before: list[Stage]) -> Stage:
    required = {"NAME", "KIND", "CONFIG"}
    optional = ("WEIGHTS", "PATH", "LIKE", "ROW", "OPTS", "MERGE", "RANDOM", "FOLDER", "TOGETHER")
    if not isinstance(entry, dict) or not required <= set(entry) <= required.union(optional):
        raise PipelineError(
            f"{file}: stage {repr(entry)[:200]}: expected NAME, KIND, CONFIG and optionally "
            f"{', '.join((*optional, 'REPEAT'))}"
        )
    problem = entry_problem(entry)
    if problem:
        raise PipelineError(f"{file}: stage {repr(entry['NAME'])[:60]}: {problem}")
    values = {"number": number, **{key.lower(): entry[key] for key in entry}}
    values["opts"] = tuple(str(o) for o in entry.get("OPTS", ()))
    values["merge"] = tuple(entry.get("MERGE", ()))
    where = f"{file}: stage {entry['NAME']!r}"
    kinds = {other.name: other.kind for other in before}
    search = _whole_front(entry, kinds)
    if search:
        values |= {"path": search, "whole": True}
    for key in {"path", "like"} & set(values):
        try:
            values[key], member = _member(values[key], kinds)
        except PipelineError as error:
            raise PipelineError(f"{where}: {key.upper()} {error}") from None
        values["member"] = member or values.get("member")
    stage = Stage(**values)
    if stage.kind not in KINDS:
        raise PipelineError(f"{where}: KIND {stage.kind!r}, expected one of {', '.join(KINDS)}")
    if stage.name in (stage.weights, stage.path):
        raise PipelineError(f"{where}: WEIGHTS or PATH is the stage itself")
    problem = _weights_problem(stage, kinds)
    if problem:
        raise PipelineError(f"{where}: {problem}")
    if kinds.get(stage.path, "search") != "search":
        raise PipelineError(f"{where}: PATH {stage.path!r} is a {kinds[stage.path]} stage")
    if stage.like and (kinds.get(stage.like) != "search" or not stage.path.startswith("random")):
        raise PipelineError(
            f"{where}: LIKE {stage.like!r} with PATH {stage.path!r}: expected an earlier search "
            "stage, and PATH random"
        )
    wrong = [name for name in stage.merge if kinds.get(name) not in FRAGMENTS]
    if wrong:
        raise PipelineError(f"{where}: MERGE {wrong}, expected earlier screen or gradient stages")
    if stage.random is not None and [kinds[n] for n in stage.merge].count("gradient") != 1:
        raise PipelineError(f"{where}: RANDOM needs one gradient stage in MERGE")
    if stage.together and (stage.kind != "train" or not stage.path or number):
        raise PipelineError(
            f"{where}: TOGETHER: expected a training (KIND train) of several networks, REPEAT with "
            "PATH random or a member of a front"
        )
    if any(stage.name == other.name for other in before):
        raise PipelineError(f"{where}: NAME is used twice")
    for other in before:
        if place_of(other) == place_of(stage):
            raise PipelineError(
                f"{where}: works in the folder {place_of(stage)!r} of stage {other.name!r}; give "
                "it another NAME or FOLDER"
            )
    if not os.path.isfile(os.path.join(os.path.dirname(file), stage.config)):
        raise PipelineError(f"{where}: CONFIG {stage.config!r} does not exist next to the file")
    return stage


def place_of(stage: Stage) -> str:
    """Folder of a stage, relative to OUTPUT_DIR."""
    return os.path.normpath(stage.folder or stage.name)


def _weights_problem(stage: Stage, kinds: dict[str, str]) -> str:
    """The fault of WEIGHTS, "" if there is none.

    Args:
        kinds: name -> KIND of the stages before.
    """
    text, kind = stage.weights, kinds.get(stage.weights, "")
    if stage.kind == "evaluate" and not text:
        return "no WEIGHTS: expected the stage that trained or found what is evaluated, or a file"
    if kind == "evaluate":
        return f"WEIGHTS {text!r} is an evaluate stage, which trains nothing; name its own WEIGHTS"
    if kind == "search" and stage.kind not in ("train", "evaluate"):
        return f"WEIGHTS {text!r} is a search, whose weights a {stage.kind} stage cannot start from"
    if kind == "search" and stage.path != text:
        return (
            f"WEIGHTS {text!r} are those of what the search found; expected PATH {text!r} or "
            f"'front {text}', got {stage.path!r}"
        )
    if text and not kind and "://" not in text and not os.path.isfile(text):
        return f"WEIGHTS {text!r} is neither an earlier training stage, nor a search, nor a file"
    return ""


def entry_problem(entry: Mapping[str, Any]) -> str:
    """The fault of a stage's values, "" if there is none.

    A pipeline writes below the folder that holds its OUTPUT_DIR and nowhere else: NAME is the name
    of one folder, FOLDER lies below OUTPUT_DIR or, with one ``..``, next to it.
    """
    if not _is_name(entry["NAME"]):
        return (
            f"NAME is {repr(entry['NAME'])[:60]}: expected the name of a folder, a text without "
            f"'/' of at most {_MAX_NAME} bytes"
        )
    for key in _TEXTS:
        value = entry.get(key, "text")
        if not isinstance(value, str) or "\0" in value or not value:
            return f"{key} is {repr(value)[:60]}: expected a text"
    opts, merge = entry.get("OPTS", []), entry.get("MERGE", [])
    if not isinstance(opts, list) or any(isinstance(word, dict) for word in opts):
        return f"OPTS is {repr(opts)[:60]}: expected a list of KEY, VALUE, ..."
    if not isinstance(merge, list) or not all(isinstance(name, str) for name in merge):
        return f"MERGE is {repr(merge)[:60]}: expected a list of stages"
    seed = entry.get("RANDOM")
    if "RANDOM" in entry and (type(seed) is not int or seed < 0):
        return f"RANDOM is {seed!r}: expected a seed, 0 or more"
    if type(entry.get("TOGETHER", False)) is not bool:
        return f"TOGETHER is {entry['TOGETHER']!r}: expected true or false"
    return _folder_problem(entry["FOLDER"]) if "FOLDER" in entry else ""


def _is_name(value: Any) -> bool:
    if not isinstance(value, str) or not value.strip() or value != value.strip():
        return False
    if value in (".", "..") or any(sign in value for sign in "/\\\0") or not value.isprintable():
        return False
    return len(value.encode()) <= _MAX_NAME


def _folder_problem(folder: str) -> str:
    parts = os.path.normpath(folder).split(os.sep)
    inside = parts[0] not in ("..", ".", "") or (parts[0] == ".." and len(parts) > 1)
    if os.path.isabs(folder) or not inside or ".." in parts[1:]:
        return (
            f"FOLDER is {repr(folder)[:60]}: expected a folder below OUTPUT_DIR, or next to it "
            "(../NAME)"
        )
    if any(len(part.encode()) > _MAX_NAME for part in parts):
        return f"FOLDER is {repr(folder)[:60]}: a name in it is longer than {_MAX_NAME} bytes"
    return ""


def split_override(
    file: str, opts: tuple[str, ...], key: str
) -> tuple[str | None, tuple[str, ...]]:
    """The value of ``key`` among KEY, VALUE overrides, None without one; and the others."""
    if len(opts) % 2:
        raise PipelineError(f"{file}: overrides are KEY VALUE pairs, the last word is {opts[-1]!r}")
    pairs = list(zip(opts[::2], opts[1::2], strict=True))
    rest = tuple(word for pair in pairs if pair[0] != key for word in pair)
    return dict(pairs).get(key), rest
