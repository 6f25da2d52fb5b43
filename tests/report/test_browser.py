"""The page in headless Chromium: phone and desktop, light and dark. Skipped where there is none."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detnas_d2.pipeline.latency_record import keep_latency
from detnas_d2.recipe.refitting import Change
from detnas_d2.report import write_report
from tests.recipe.values import record_of
from tests.report.folders import latency

NAMES = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser", "chrome")
# Stands before everything else of the page, so that it hears all errors.
LISTENER = """<script>
const problems = [];
addEventListener("error", event => problems.push(event.message || event.target.outerHTML), true);
addEventListener("load", () => {
  parent.document.documentElement.dataset["w" + innerWidth] = [
    document.documentElement.scrollWidth,
    matchMedia("(prefers-color-scheme: dark)").matches,
    problems.length,
    ...problems,
  ].join(" ");
});
</script>"""
# No window is narrower than 500 pixels, a frame is.
PHONE, DESKTOP = 360, 1280
FRAME = '<iframe srcdoc="{page}" style="border: 0; width: {width}px; height: 1600px"></iframe>'


@cache
def browser() -> str:
    """Chromium, or what is made of it, that starts; "" for none."""
    for file in filter(None, map(shutil.which, NAMES)):
        asked = subprocess.run([file, "--version"], capture_output=True, check=False)
        if asked.returncode == 0:  # not a stub that asks for a snap
            return file
    return ""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_on_phone_and_desktop(dark: bool, run: Path, tmp_path: Path) -> None:
    if not browser():
        pytest.skip(f"none of {', '.join(NAMES)} was found (apt-get install chromium)")
    late = Change("supernet", 120, 1200, 400, 3.0, kept=True, worked=100.0, at=120.0)
    record_of(run, changes=(late,))
    (run / "searched" / "model_final.pth").write_bytes(b"x")
    for name, milliseconds in (("searched", 12.3), ("handmade", 20.0)):
        keep_latency(str(run / name / "config.yaml"), latency(milliseconds))
    source = Path(write_report(str(run))).read_text(encoding="utf-8")
    assert source.count("<head>") == 1 and "Late stages" in source and "12.3 ms" in source
    listening = html.escape(source.replace("<head>", f"<head>{LISTENER}"))
    frames = "".join(FRAME.format(page=listening, width=width) for width in (PHONE, DESKTOP))
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    both = f'<!DOCTYPE html><html><body style="margin: 0; white-space: nowrap">{frames}</body>'
    page.write_text(f"{both}</html>", encoding="utf-8")
    command = [
        *(browser(), "--headless", "--disable-gpu", "--disable-dev-shm-usage", "--no-sandbox"),
        *("--no-first-run", "--hide-scrollbars", "--enable-logging=stderr", "--disable-sync"),
        *("--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"),
        *(["--force-dark-mode"] if dark else []),
        *(f"--window-size={PHONE + DESKTOP},1600", f"--screenshot={picture}", "--dump-dom"),
        page.as_uri(),
    ]
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=True, env=environment
    )
    assert "CONSOLE" not in done.stderr
    root = re.findall(r"<html[^>]*>", done.stdout)[0]
    # As wide as its frame: nothing scrolls sideways. No error.
    for width in (PHONE, DESKTOP):
        assert f'data-w{width}="{width} {str(dark).lower()} 0"' in root
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    for place in (pixels[:, :PHONE], pixels[:, PHONE:]):
        assert tuple(place[2, 2]) == ((13, 17, 23) if dark else (255, 255, 255))
        # Text and lines: neither an empty page nor one whose ink cannot be seen.
        contrast = np.abs(place - place[2, 2]).max(axis=2)
        assert (contrast > 150).mean() > 0.005
