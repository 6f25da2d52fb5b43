"""The page in headless Chromium: phone and desktop, light and dark. Skipped where there is none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detnas_d2.report import write_report

NAMES = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser", "chrome")
# Stands before everything else of the page, so that it hears all errors.
LISTENER = """<script>
const problems = [];
addEventListener("error", event => problems.push(event.message || event.target.outerHTML), true);
addEventListener("load", () => {
  const root = document.documentElement;
  root.dataset.inner = innerWidth;
  root.dataset.wide = root.scrollWidth;
  root.dataset.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.problems = problems.length + problems.join("; ");
});
</script>"""


@cache
def browser() -> str:
    """Chromium, or what is made of it, that starts; "" for none."""
    for file in filter(None, map(shutil.which, NAMES)):
        asked = subprocess.run([file, "--version"], capture_output=True, check=False)
        if asked.returncode == 0:  # not a stub that asks for a snap
            return file
    return ""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_in_a_browser(width: int, dark: bool, run: Path, tmp_path: Path) -> None:
    if not browser():
        pytest.skip(f"none of {', '.join(NAMES)} was found (apt-get install chromium)")
    source = Path(write_report(str(run))).read_text(encoding="utf-8")
    assert source.count("<head>") == 1
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text(source.replace("<head>", f"<head>{LISTENER}"), encoding="utf-8")
    command = [
        *(browser(), "--headless", "--disable-gpu", "--disable-dev-shm-usage", "--no-sandbox"),
        *("--no-first-run", "--hide-scrollbars", "--enable-logging=stderr", "--disable-sync"),
        *("--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"),
        *(["--force-dark-mode"] if dark else []),
        *(f"--window-size={width},1600", f"--screenshot={picture}", "--dump-dom", page.as_uri()),
    ]
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=True, env=environment
    )
    assert "CONSOLE" not in done.stderr
    (root,) = re.findall(r"<html[^>]*>", done.stdout)
    told = dict(re.findall(r'data-(\w+)="([^"]*)"', root))
    assert told["problems"] == "0"
    assert told["dark"] == str(dark).lower()
    assert int(told["inner"]) == width
    assert int(told["wide"]) <= width
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape[1] == width
    assert tuple(pixels[2, 2]) == ((13, 17, 23) if dark else (255, 255, 255))
    # Text and lines: neither an empty page nor one in which ink is invisible.
    contrast = np.abs(pixels.astype(int) - pixels[2, 2]).max(axis=2)
    assert (contrast > 150).mean() > 0.005
