"""CSV files with one box per row."""

from __future__ import annotations

from detnas_d2.data.checks.csv_boxes import COLUMNS, image_names
from detnas_d2.data.checks.report import DatasetError
from detnas_d2.data.datasets.sources import CsvSource
from detnas_d2.data.recognition.layout import ROLES, Found, Layout, image_folder, largest, role_of
from detnas_d2.data.recognition.tree import Tree

EXPECTED = f"CSV (the columns {','.join(COLUMNS)})"


def find_csv(tree: Tree, reasons: list[str]) -> Layout | None:
    """``reasons`` gets a line for every file that nearly is one."""
    files: dict[str, list[tuple[str, int]]] = {}
    folders = {}
    for path in tree.annotation_files(".csv"):
        try:
            names = image_names(tree.path(path))
        except DatasetError as error:
            reasons.append(str(error))
            continue
        folder, hits, looked = image_folder(tree, names, path)
        if not hits:
            reasons.append(
                f"{path}: none of {looked} of its images that were looked for is below the folder "
                f"(e.g. {''.join(names[:1])!r})"
            )
            continue
        folders[path] = folder
        files.setdefault(role_of(path), []).append((path, len(names)))
    roles, notes = {}, []
    for role in ROLES:
        if role in files:
            path, note = largest(files[role], "images", role)
            source = CsvSource(tree.path(path), tree.path(folders[path]).rstrip("/"))
            roles[role] = Found(source, path)
            notes += [note] if note else []
    return Layout("csv", "CSV of boxes", roles, notes) if roles else None
