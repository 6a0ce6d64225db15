"""Generates the documentation's pictures of the command line and of notebooks.

    python docs/pictures/make.py

The script trains the demo's network three times, so it needs `metricbus[all]`. It also needs tmux,
and chromium to render pages. Temporary files are in /tmp/digits, which must not exist beforehand.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

import metricbus

HERE = Path(__file__).resolve().parent
WORK_FOLDER = Path("/tmp/digits")  # visible in the pictures
LEARNING_RATES = {"digits-slow": 1e-3, "digits-base": 1e-2, "digits-fast": 5e-2}  # by run
WIDTH = 100  # columns
SCREENS = {
    "cli-ls": "metricbus ls",
    "cli-show": "metricbus show digits-base",
    "cli-compare": "metricbus compare digits-slow digits-base digits-fast",
    "cli-tail": "metricbus tail digits-base --name 'train/*' -n 5",
    "cli-plot-term": "metricbus plot digits-slow digits-base --name val/accuracy --term",
}

_END = "end-of-output"  # marks in the captured screen that the command has finished


def main() -> None:
    """Generate all pictures."""
    WORK_FOLDER.mkdir()
    try:
        os.chdir(WORK_FOLDER)
        for name, rate in LEARNING_RATES.items():
            train(name, rate)
        for name, command in SCREENS.items():
            (HERE / f"{name}.svg").write_text(svg_of(command, screen_of(command)))
        plot_command = [
            "plot",
            *LEARNING_RATES,
            "--name",
            "train/loss",
            "--name",
            "val/accuracy",
            "--smooth",
            "0.6",
        ]
        subprocess.run(
            [sys.executable, "-m", "metricbus", *plot_command, "--out", str(HERE / "cli-plot.png")],
            check=True,
        )
        screenshot_notebook(Path("runs/digits-base"), HERE / "notebook-history.png")
    finally:
        shutil.rmtree(WORK_FOLDER)


def train(name: str, rate: float) -> None:
    """Run the demo with this run name and learning rate."""
    code = (
        "from pathlib import Path\n"
        "import digits as demo\n"
        "bus = demo.MetricBus\n"
        f"demo.MetricBus = lambda name, **more: bus(name={name!r}, id={name!r}, **more)\n"
        f"demo.MAX_LR = demo.CONFIG['max_lr'] = {rate}\n"
        "demo.run_demo(sinks='csv,tensorboard', dir=Path('runs'), epochs=8)\n"
    )
    env = os.environ | {"PYTHONPATH": str(HERE.parent / "examples")}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=env)


def screen_of(command: str) -> str:
    """Run the command in a tmux session of 100 columns; return its output with ANSI colors."""
    tmux = ["tmux", "-L", f"pictures-{time.monotonic_ns()}"]  # starts a separate server
    size = ["-x", str(WIDTH), "-y", "60"]
    shell = f"PATH={Path(sys.executable).parent}:$PATH {command}; echo; echo {_END}; sleep 60"
    subprocess.run([*tmux, "new-session", "-d", *size, "sh", "-c", shell], check=True)
    try:
        for _ in range(300):
            captured = subprocess.run(
                [*tmux, "capture-pane", "-e", "-p"], check=True, capture_output=True, text=True
            ).stdout
            if f"\n{_END}" in captured:
                return captured.rpartition(f"\n{_END}")[0].rstrip()
            time.sleep(0.1)
        raise TimeoutError(f"{command!r} did not finish within 30 s")
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)


def svg_of(command: str, screen: str) -> str:
    """Return the screen as an SVG image that uses the viewer's fonts and loads none."""
    with open(os.devnull, "w") as null:
        console = Console(
            record=True, width=WIDTH, file=null, force_terminal=True, color_system="truecolor"
        )
        console.print(Text(f"$ {command}", style="bold"))
        console.print(Text.from_ansi(screen), soft_wrap=True)
        console.print()  # keeps underscores in the last line from being cut off
        picture = console.export_svg(title=command.split(" --", maxsplit=1)[0])
        return re.sub(r"\s*@font-face \{[^}]*\}", "", picture)


def screenshot_notebook(run: Path, picture: Path) -> None:
    """Render a run's history as a notebook shows it, and save a screenshot."""
    page = Path("history.html").absolute()
    table = metricbus.read(run)._repr_html_()
    style = "body { font: 13px sans-serif; margin: 12px; background: white }"
    page.write_text(f"<meta charset=utf-8><style>{style}</style>{table}")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    size = "--window-size=720,330"
    subprocess.run(
        ["chromium", *options, size, f"--screenshot={picture}", page.as_uri()],
        check=True,
        capture_output=True,
    )


if __name__ == "__main__":
    main()
