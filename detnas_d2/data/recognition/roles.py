"""Which images are trained on, which score candidates, and which are for the result alone."""

from __future__ import annotations

from detnas_d2.data.recognition.layout import TEST, TRAIN, VAL, WHOLE, Found, Layout
from detnas_d2.data.recognition.leaks import Read


def with_train(layout: Layout, notes: list[str]) -> dict[str, Found]:
    """The roles of a layout with one to train on first; WHOLE is gone."""
    roles = dict(layout.roles)
    first = next(role for role in (TRAIN, WHOLE, VAL, TEST) if role in roles)
    if first in (VAL, TEST):
        notes.append(f"{roles[first].place} is trained on, for nothing is named for training")
    chosen = {TRAIN: roles.pop(first)}
    if WHOLE in roles:
        notes.append(f"{roles.pop(WHOLE).place} is left out: {chosen[TRAIN].place} is trained on")
    return {**chosen, **{role: roles[role] for role in (VAL, TEST) if role in roles}}


_MEMORISED = "scores favour what was memorised"
_CHOSEN = "the result favours what was chosen by them"


def leave_out_same(reads: dict[str, Read], notes: list[str]) -> None:
    """Takes roles out whose images are all trained on, and a validation set whose images all test;
    names those of which some do.
    """
    for role, other, use, so in (
        (VAL, TRAIN, "trained on", _MEMORISED),
        (TEST, TRAIN, "trained on", _MEMORISED),
        (VAL, TEST, "tested on", _CHOSEN),
    ):
        if role not in reads or other not in reads:
            continue
        files, place = reads[role].files, reads[role].found.place
        shared = files & reads[other].files
        if shared == files:
            notes.append(f"{place} is left out: all of its images are {use}")
            del reads[role]
        elif shared:
            notes.append(
                f"{len(shared)} of {len(files)} images of {place} are {use} too, so that {so}, "
                f"e.g. {min(shared)}"
            )


def test_from_val(reads: dict[str, Read], notes: list[str]) -> None:
    """Without a test set the images for validation are it."""
    if VAL not in reads:
        return
    if TEST in reads:
        notes.append(
            f"{reads[VAL].found.place} can score candidates (SEARCH.VAL), "
            f"{reads[TEST].found.place} is for the result alone"
        )
        return
    reads[TEST] = reads.pop(VAL)
    notes.append(
        f"{reads[TEST].found.place} is the test set, for there is no other; candidates are scored "
        "on images kept from those to train on"
    )
