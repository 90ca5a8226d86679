"""Every command of emu that a page shows is one of the command line's, and those on the demo files work."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer

from emu.cli import app
from tests.docs.pages import PAGES, ROOT, Shown, commands, inline_commands, inline_options

MAIN: Any = typer.main.get_command(app)
SHOWN = [shown for page in PAGES for shown in commands(page)]
OF_OTHERS = {"--help", "--version", "--nproc-per-node"}
PROGRAMS = [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "examples").glob("*.py")]
ON_OTHER_FILES = {"repair.md", "report.md"}  # folders of Hugging Face, stores of earlier pages
# Why a shown command on files that are there is not run.
NOT_RUN = {"rerun": "the id is that of a longer sweep than the one that is run here"}


def leaf(arguments: list[str]) -> tuple[Any, list[str]]:
    """The command that the words name, and what is left for it."""
    command = MAIN
    while hasattr(command, "commands"):
        assert arguments and arguments[0] in command.commands, f"no command {arguments[:1]} in {command.name or 'emu'}"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    return command, arguments


def names_of(command: Any) -> set[str]:
    """The command's options, and its arguments by None."""
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def leaves(command: Any = MAIN) -> list[Any]:
    """All commands that do something."""
    return [one for sub in getattr(command, "commands", {}).values() for one in leaves(sub)] or [command]


def test_pages_show_commands() -> None:
    assert len(SHOWN) > 40


@pytest.mark.parametrize("shown", SHOWN, ids=str)
def test_a_shown_command_is_read_by_the_command_line(shown: Shown) -> None:
    command, rest = leaf(list(shown.arguments))
    context = command.context_class(command, info_name="emu")
    command.parse_args(context, rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_running_text_exist(page: Path) -> None:
    for text in inline_commands(page):
        words = [word for word in text.replace("[", " ").replace("]", " ").split()[1:] if word != "|"]
        for first in words[0].split("|"):
            if first in ("--help", "-h", "--version", "--show-completion", "--install-completion"):
                continue
            command = MAIN.commands[first]
            rest = words[1:]
            if hasattr(command, "commands"):
                if not rest:
                    continue
                alternatives, rest = rest[0].split("|"), rest[1:]
                choices = [command.commands[name] for name in alternatives if re.fullmatch("[a-z]+", name)]
            else:
                choices = [command]
            for choice in choices:
                known = names_of(choice) | OF_OTHERS
                unknown = [word for word in rest if re.match(r"-{1,2}[a-z]", word) and word.split("=")[0] not in known]
                assert not unknown, f"`{text}`: {unknown} of {choice.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_in_running_text_exist(page: Path) -> None:
    known = OF_OTHERS.union(*(names_of(command) for command in leaves()))
    programs = "\n".join(program.read_text("utf-8") for program in PROGRAMS)
    unknown = [option for option in inline_options(page) if option not in known and f'"{option}"' not in programs]
    assert not unknown


def shortened(shown: Shown, folder: Path) -> list[str] | None:
    """The command with two chips and few samples; None where a file that it reads is not in the folder."""
    command, rest = leaf(list(shown.arguments))
    path = list(shown.arguments[: len(shown.arguments) - len(rest)])
    context = command.context_class(command, info_name="emu")
    command.parse_args(context, list(rest))
    options = {name: parameter for parameter in command.params for name in parameter.opts}
    reads = [word for word in rest if re.search(r"\.(onnx|npz|db|csv|toml|json|jsonl|parquet|safetensors)$", word)]
    writes = {rest[rest.index(name) + 1] for name in ("-o", "--output", "--store", "--export") if name in rest}
    inputs = [word for word in reads if word not in writes]
    if not inputs or not all((folder / word).exists() for word in inputs):
        return None
    for name, few in (("--chips", "2"), ("--seeds", "2"), ("--samples", "24"), ("--count", "4")):
        if name not in options or options[name].is_flag:
            continue
        if name in rest:
            rest[rest.index(name) + 1] = few
        elif {"--chips": "--seeds", "--seeds": "--seed"}.get(name) not in options:
            rest += [name, few]
    return path + rest


@pytest.mark.slow
@pytest.mark.parametrize("page", [*filter(commands, PAGES)], ids=lambda page: str(page.relative_to(ROOT)))
def test_shown_commands_on_the_demo_files_work(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in (ROOT / "emu/demo").glob("*.*"):
        if file.suffix in (".onnx", ".npz"):
            shutil.copy(file, tmp_path)
    (tmp_path / "emu").mkdir()
    (tmp_path / "emu/demo").symlink_to(ROOT / "emu/demo")
    shutil.copy(ROOT / "emu/demo/digits_vit.onnx", "model.onnx")
    shutil.copy(ROOT / "emu/demo/digits_test.npz", "test.npz")
    ran = 0
    for shown in commands(page):
        arguments = shortened(shown, tmp_path)
        if arguments is None or shown.arguments[0] in NOT_RUN:
            continue
        ran += 1
        with pytest.raises(SystemExit) as ended:
            app(arguments, prog_name="emu")
        expected = 2 if shown.printed.startswith("Error:") else 0
        assert ended.value.code == expected, f"emu {' '.join(arguments)}: {capsys.readouterr().err}"
    assert ran or page.name in ON_OTHER_FILES
