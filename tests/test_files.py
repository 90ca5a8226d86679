"""What is written is there whole or not at all, and nothing hidden stays behind, whatever ends a command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emu import InputError
from emu.demo import data_path, model_path
from emu.files import unfinished, whole_file

ROOT = Path(__file__).parents[1]


def test_a_file_appears_whole(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a.txt") as part:
        part.write_text("half")
        assert unfinished() and not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "half" and not unfinished()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_old_file_stays_where_the_new_one_fails(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error), whole_file(tmp_path / "a.txt") as part:
        part.write_text("half")
        raise error
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no folder"), whole_file(tmp_path / "none" / "a.txt"):
        pass
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="a cannot be written: Is a directory"), whole_file(tmp_path / "a") as part:
        part.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def listen() -> None:
    """A shell's background jobs, and what they start, ignore Ctrl-C."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(*arguments: object, python: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    command = [sys.executable, *python, "-m", "emu", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen
    )


@pytest.mark.parametrize(
    "module",
    ["emu.errors", "typer.core", "numpy._core.numerictypes", "onnx.helper", "onnxruntime.capi", "pydantic.main"],
)
@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_command_that_is_still_importing_stops(module: str, number: int, code: int, said: str) -> None:
    arguments = ["evaluate", model_path("digits_vit"), "--data", data_path("digits_test"), "--device", "rram"]
    process = start(*arguments, "--chips", 10_000, python=("-X", "importtime"))
    assert process.stderr is not None
    for line in process.stderr:  # a line for each module that was imported
        if line.split("|")[-1].strip() == module:
            break
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors[-500:]
    assert output == "" and "Traceback" not in errors
    assert [line for line in errors.splitlines() if not line.startswith("import time:")] == [f"Error: {said}."]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_command_that_is_ended_leaves_nothing_hidden(tmp_path: Path, number: int, code: int) -> None:
    program = """if True:
        import sys, time
        import emu.rewriter.save as module
        from emu.__main__ import main

        def slow(model, path, write=module.write_model):
            write(model, path)
            print("half", flush=True)
            time.sleep(60)

        module.write_model = slow
        sys.argv = ["emu", "rewrite", sys.argv[1], "--device", "rram", "-o", sys.argv[2]]
        main()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", program, model_path("digits_vit"), tmp_path / "new.onnx"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen,
    )
    assert process.stdout is not None and process.stdout.readline() == "half\n"
    assert any(path.name.startswith(".new.onnx.") for path in tmp_path.iterdir())
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code and "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_ctrl_c_while_a_command_works_is_one_line() -> None:
    arguments = ["evaluate", model_path("digits_vit"), "--data", data_path("digits_test"), "--device", "rram"]
    process = start(*arguments, "--chips", 100_000)
    seconds = time.monotonic()
    while _processor_seconds(process.pid) < 4 and time.monotonic() - seconds < 60:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (130, "", "Error: interrupted.\n")


def _processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
