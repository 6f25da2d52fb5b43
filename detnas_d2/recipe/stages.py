"""The stages of a run, as run_pipeline.py reads them."""

from __future__ import annotations

from detnas_d2.recipe.choice import HAND_MADE_OP, LARGE, Recipe
from detnas_d2.recipe.detectors import HIT_BY_HAND, Tree
from detnas_d2.recipe.inputs import Settings
from detnas_d2.recipe.schedule import (
    BASELINE,
    INHERITED,
    MEMBER,
    RANDOM,
    SEARCH,
    SEARCHED,
    SUPERNET,
    Plan,
    Schedule,
)


def pipeline_of(plan: Plan, schedule: Schedule, settings: Settings) -> Tree:
    """The whole file."""
    recipe = plan.recipe
    tuned: Tree = {"KIND": "train", "CONFIG": "finetune.yaml"}
    if recipe.method == "detnas":
        tuned["WEIGHTS"] = SUPERNET
        begin = [
            {"NAME": SUPERNET, "KIND": "train", "CONFIG": "supernet.yaml"},
            {"NAME": SEARCH, "KIND": "search", "CONFIG": "search.yaml", "WEIGHTS": SUPERNET},
            {
                "NAME": INHERITED,
                "KIND": "evaluate",
                "CONFIG": "finetune.yaml",
                "WEIGHTS": SEARCH,
                "PATH": SEARCH,
            },
            {"NAME": SEARCHED, **tuned, "PATH": SEARCH},
        ]
    else:
        if recipe.pattern == LARGE:
            tuned["WEIGHTS"] = SEARCH
        begin = [
            {"NAME": SEARCH, "KIND": "gradient", "CONFIG": "search.yaml"},
            {"NAME": SEARCHED, **tuned, "MERGE": [SEARCH]},
        ]
    compared = plan.comparisons(schedule)
    members = plan.members(schedule)
    drawn = [name for name in compared if name.startswith(f"{RANDOM}_")]
    others = [name for name in compared if name not in (*members, *drawn)]
    rows = [SEARCHED, *reversed(members), *[RANDOM] * bool(drawn), *others]
    return {
        "OUTPUT_DIR": settings.output,
        "STAGES": [
            *begin,
            *({"NAME": name, **tuned, "PATH": _member(plan, name)} for name in members),
            *(_compared(recipe, name, tuned) for name in others),
            *(_drawn(recipe, name, tuned) for name in drawn),
        ],
        "TABLE": rows + [INHERITED] * (recipe.method == "detnas"),
    }


def _member(plan: Plan, name: str) -> str:
    """PATH of ``member_NUMBER``; the last of all is the searched network."""
    return f"front {SEARCH} {name.removeprefix(f'{MEMBER}_')}/{plan.relatives}"


def _compared(recipe: Recipe, name: str, tuned: Tree) -> Tree:
    """The stage of the baseline or of the hand-made network."""
    if name == BASELINE:
        return {"NAME": name, "KIND": "train", "CONFIG": "resnet50.yaml"}
    if recipe.method == "detnas":
        return {"NAME": name, **tuned, "PATH": f"uniform {HAND_MADE_OP}"}
    words = [(f"MODEL.HIT.GENOTYPE.{key}", text) for key, text in HIT_BY_HAND.items()]
    return {"NAME": name, **tuned, "OPTS": [word for pair in words for word in pair]}


def _drawn(recipe: Recipe, name: str, tuned: Tree) -> Tree:
    """The stage of a random network, ``random_NUMBER``."""
    number = int(name.removeprefix(f"{RANDOM}_"))
    if recipe.method == "detnas":
        return {"NAME": name, **tuned, "PATH": f"random {number}", "ROW": RANDOM}
    return {"NAME": name, **tuned, "MERGE": [SEARCH], "RANDOM": number, "ROW": RANDOM}
