"""Run the built-in examples and bring README's output of `datafree demo` and the pictures in docs/pictures up to date.

    python scripts/update_demos.py                            # everything
    python scripts/update_demos.py --only garments-demo       # or several of them
    python scripts/update_demos.py --quick                    # a few steps, nothing written: to see that it works

Commands run as a user would type them, in an empty folder. Scores that other lines of README and docs/results.md state
are not written, nor are the pictures' captions: compare them with what is printed and seen.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
README: Final = ROOT / "README.md"
PICTURES: Final = ROOT / "docs" / "pictures"
BEGIN: Final = "<!-- demo output -->\n"
END: Final = "<!-- /demo output -->"
SHORT: Final = ("training.steps=4", "source.warmup=4")

# run -> the command that makes it, the picture its last sample becomes
RUNS: Final = {
    "garments-demo": (["demo", "--task", "segmentation"], "demo.png"),
    "fashion-demo": (["demo", "--task", "classification"], "fashion-demo.png"),
    "boxes-demo": (["demo", "--task", "detection"], "detection.png"),
    "boxes-diode": (["distill", "boxes-diode", "source.warmup=8"], "boxes-diode.png"),
    "garments-cgdd": (["distill", "garments-cgdd"], "garments-cgdd.png"),
}
IN_README: Final = "garments-demo"


def shortened(words: list[str]) -> list[str]:
    """The same command with a few steps."""
    if words[0] == "demo":
        return [*words, "--quick"]
    return [*(word for word in words if "=" not in word), *SHORT]


def run_command(words: list[str], folder: Path) -> str:
    """Run `datafree WORDS` in `folder`; what it prints on stdout. Ends this script where it fails."""
    print("datafree", *words, flush=True)
    command = [sys.executable, "-m", "datafree", *words, "--quiet"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: `datafree {' '.join(words)}` ended with {done.returncode}")
    print(done.stdout, flush=True)
    return done.stdout


def with_output(page: str, output: str) -> str:
    """README with `output` between its marks."""
    if BEGIN not in page or END not in page:
        raise SystemExit(f"error: README.md has no marks {BEGIN.strip()} and {END} to write the output between")
    before, rest = page.split(BEGIN, 1)
    return f"{before}{BEGIN}```text\n{output.rstrip()}\n```\n{END}{rest.split(END, 1)[1]}"


def last_sample(run: Path) -> Path:
    """The last picture of a run."""
    found = sorted((run / "samples").glob("*.png"))
    if not found:
        raise SystemExit(f"error: {run} holds no pictures")
    return found[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the built-in examples; bring README and pictures up to date.")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS), metavar="RUN", help=" ".join(RUNS))
    parser.add_argument("--work", type=Path, default=Path("work/demos"), help="emptied first")
    parser.add_argument("--quick", action="store_true", help="a few steps; writes nothing outside of --work")
    given = parser.parse_args()
    for name in given.only:
        words, picture = RUNS[name]
        folder = given.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        output = run_command(shortened(words) if given.quick else words, folder)
        sample = last_sample(folder / "runs" / (f"{name}-quick" if given.quick and words[0] == "demo" else name))
        if given.quick:
            continue
        shutil.copyfile(sample, PICTURES / picture)
        if name == IN_README:
            README.write_text(with_output(README.read_text(encoding="utf-8"), output), encoding="utf-8")


if __name__ == "__main__":
    main()
