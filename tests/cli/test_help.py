"""The help fits a screen and has examples that work; words that are misspelt are guessed; shells complete."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from datafree.cli.help import EXAMPLES, GROUPS
from datafree.cli.main import app

COMMAND: Any = typer.main.get_command(app)
VERBS: list[str] = list(COMMAND.commands)
SCREEN = 40  # lines, of 80 columns
TOOL = Path(sys.executable).with_name("datafree")


def run(*arguments: str, width: int = 80) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": str(width)}, terminal_width=width)
    return done.exit_code, done.output


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_the_help_of_a_verb_fits_a_screen(verb: str) -> None:
    code, text = run(*([verb] if verb else []), "--help")
    lines = text.splitlines()
    assert code == 0
    assert len(lines) <= SCREEN
    assert max(map(len, lines)) <= 80


def test_no_word_at_all_gives_the_help_in_lines() -> None:
    done = subprocess.run([TOOL], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: datafree [OPTIONS] COMMAND [ARGS]...\n\n  Distil ")
    assert "\\n" not in done.stderr and len(done.stderr.splitlines()) > 20


def test_every_verb_is_in_a_group_of_the_help_and_has_an_example() -> None:
    grouped = [verb for verbs in GROUPS.values() for verb in verbs]
    assert len(grouped) == len(set(grouped))
    assert set(VERBS) <= set(grouped)
    assert set(VERBS) <= set(EXAMPLES)
    _, text = run("--help")
    assert all(f"\n{title}:\n" in text for title in GROUPS)
    assert "Other verbs" not in text


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_of_a_verb_is_in_its_help_and_parses(verb: str) -> None:
    _, text = run(verb, "--help", width=200)
    assert EXAMPLES[verb] in text
    name, given, *arguments = shlex.split(EXAMPLES[verb].partition(" > ")[0])
    assert (name, given) == ("datafree", verb)
    COMMAND.commands[verb].make_context(verb, arguments)  # raises for an option that it has not


@pytest.mark.parametrize(
    ("arguments", "guess"), [(["distil", "x"], "'distill'"), (["sythesize", "x"], "'synthesize'"), (["lsit"], "'list'")]
)
def test_a_misspelt_verb_is_guessed(arguments: list[str], guess: str) -> None:
    code, text = run(*arguments)
    assert code == 2
    assert "Did you mean" in text and guess in text


@pytest.mark.parametrize(
    ("arguments", "guess"),
    [(["distill", "x", "--max-tme", "9m"], "--max-time"), (["export", "x", "--int-8"], "--int8")],
)
def test_a_misspelt_option_is_guessed(arguments: list[str], guess: str) -> None:
    code, text = run(*arguments)
    assert code == 2
    assert guess in text.partition("No such option")[2]


def shell(command: str, *program: str) -> str:
    env = {**os.environ, "PATH": f"{TOOL.parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run([*program, command], env=env, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not TOOL.exists() or not shutil.which("bash"), reason="needs bash and the command installed")
def test_bash_completes_verbs_and_options() -> None:
    script = (
        'eval "$(_DATAFREE_COMPLETE=source_bash datafree)"\n'
        'asked() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _datafree_completion datafree; echo ${COMPREPLY[@]}; }\n'
        "asked datafree dist\nasked datafree distill x --max\n"
    )
    assert shell(script, "bash", "-c").split() == ["distill", "--max-time"]


@pytest.mark.thorough
@pytest.mark.skipif(not TOOL.exists() or not shutil.which("zsh"), reason="needs zsh and the command installed")
def test_zsh_completes_verbs() -> None:
    script = (
        "compdef() { }; _arguments() { print -r -- $@ }\n"  # what its completion system has
        'eval "$(_DATAFREE_COMPLETE=source_zsh datafree)"\n'
        "words=(datafree dist) CURRENT=2; _datafree_completion\n"
    )
    assert '"distill"' in shell(script, "zsh", "-fc")


def test_completion_is_an_option_of_the_command_and_needs_no_torch() -> None:
    _, text = run("--help")
    assert "--install-completion" in text and "--show-completion" in text
    code = (
        "import sys; from datafree.cli.main import main\n"
        "sys.argv = ['datafree']\n"
        "try: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    asked = {"_DATAFREE_COMPLETE": "complete_bash", "COMP_WORDS": "datafree dem", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=True
    )
    assert (done.stdout.split(), done.stderr) == (["demo"], "False\n")
