"""Makes the pictures of the command line and of notebooks that the documentation shows.

    python docs/pictures/make.py

It trains the demo's network three times, so it needs `metricbus[all]`; tmux, and chromium to turn
pages into pictures. Everything it makes in between is in /tmp/digits, which must not be there.
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
PLACE = Path("/tmp/digits")  # is seen in the pictures
RUNS = {"digits-slow": 1e-3, "digits-base": 1e-2, "digits-fast": 5e-2}  # and their learning rates
WIDTH = 100
SCREENS = {
    "cli-ls": "metricbus ls",
    "cli-show": "metricbus show digits-base",
    "cli-compare": "metricbus compare digits-slow digits-base digits-fast",
    "cli-tail": "metricbus tail digits-base --name 'train/*' -n 5",
    "cli-plot-term": "metricbus plot digits-slow digits-base --name val/accuracy --term",
}


def main() -> None:
    """Makes all of them."""
    PLACE.mkdir()
    try:
        os.chdir(PLACE)
        for name, rate in RUNS.items():
            train(name, rate)
        for name, command in SCREENS.items():
            (HERE / f"{name}.svg").write_text(svg_of(command, screen_of(command)))
        curves = [
            "plot",
            *RUNS,
            "--name",
            "train/loss",
            "--name",
            "val/accuracy",
            "--smooth",
            "0.6",
        ]
        subprocess.run(
            [sys.executable, "-m", "metricbus", *curves, "--out", str(HERE / "cli-plot.png")],
            check=True,
        )
        photograph_notebook(Path("runs/digits-base"), HERE / "notebook-history.png")
    finally:
        shutil.rmtree(PLACE)


def train(name: str, rate: float) -> None:
    """A run of the demo with this name and learning rate."""
    code = (
        "from pathlib import Path\n"
        "import digits as demo\n"
        "bus = demo.MetricBus\n"
        f"demo.MetricBus = lambda run, **more: bus(run={name!r}, id={name!r}, **more)\n"
        f"demo.MAX_LR = demo.CONFIG['max_lr'] = {rate}\n"
        "demo.run_demo(sinks='csv,tensorboard', dir=Path('runs'), epochs=8)\n"
    )
    env = os.environ | {"PYTHONPATH": str(HERE.parent / "examples")}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=env)


def screen_of(command: str) -> str:
    """What the command shows on a terminal of 100 columns, with its colours, as tmux has it."""
    tmux = ["tmux", "-L", f"pictures-{time.monotonic_ns()}"]  # a server of its own
    size = ["-x", str(WIDTH), "-y", "60"]
    shell = f"PATH={Path(sys.executable).parent}:$PATH {command}; echo; echo over; sleep 60"
    subprocess.run([*tmux, "new-session", "-d", *size, "sh", "-c", shell], check=True)
    try:
        for _ in range(300):
            captured = subprocess.run(
                [*tmux, "capture-pane", "-e", "-p"], check=True, capture_output=True, text=True
            ).stdout
            if "\nover" in captured:
                return captured.rpartition("\nover")[0].rstrip()
            time.sleep(0.1)
        raise TimeoutError(f"{command} did not end")
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)


def svg_of(command: str, screen: str) -> str:
    """The screen as a picture, in a font that whoever looks at it has; it fetches none."""
    with open(os.devnull, "w") as nowhere:
        console = Console(
            record=True, width=WIDTH, file=nowhere, force_terminal=True, color_system="truecolor"
        )
        console.print(Text(f"$ {command}", style="bold"))
        console.print(Text.from_ansi(screen), soft_wrap=True)
        console.print()  # or underscores of the last line are cut off
        picture = console.export_svg(title=command.split(" --", maxsplit=1)[0])
        return re.sub(r"\s*@font-face \{[^}]*\}", "", picture)


def photograph_notebook(run: Path, picture: Path) -> None:
    """What a notebook shows of a history."""
    page = Path("history.html").absolute()
    shown = metricbus.read(run)._repr_html_()
    style = "body { font: 13px sans-serif; margin: 12px; background: white }"
    page.write_text(f"<meta charset=utf-8><style>{style}</style>{shown}")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    size = "--window-size=720,330"
    subprocess.run(
        ["chromium", *options, size, f"--screenshot={picture}", page.as_uri()],
        check=True,
        capture_output=True,
    )


if __name__ == "__main__":
    main()
