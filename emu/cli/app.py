"""The application that the commands join, and what becomes of their errors."""

import errno
from typing import Annotated, Any, NoReturn

import typer

from emu.cli.guide import PartsGroup
from emu.errors import InputError


class Group(PartsGroup):
    """Turns errors into one sentence on stderr and an exit code: 1 failed, 2 bad usage or input."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Reads the command line."""
        try:
            return super().make_context(*arguments, **options)
        except KeyboardInterrupt:
            typer.echo("Error: interrupted.", err=True)
            raise SystemExit(130) from None

    def invoke(self, ctx: Any) -> Any:
        """Runs a command."""
        try:
            return super().invoke(ctx)
        except InputError as error:
            fail(str(error), 2)
        except KeyboardInterrupt:
            fail("interrupted.", 130)
        except Exception as error:
            text = " ".join(str(error).split())
            if "emu:" in text:  # an operator refused what it was given; onnxruntime wraps its sentence
                fail(text[text.index("emu:") :], 2)
            if isinstance(error, MemoryError):
                fail("not enough memory.", 1)
            if type(error).__module__.startswith("onnxruntime"):
                fail(text, 1)
            if isinstance(error, OSError) and error.errno != errno.EPIPE:
                fail(text, 1)
            raise


def fail(sentence: str, code: int) -> NoReturn:
    """Ends the command with one sentence on stderr."""
    typer.echo(f"Error: {sentence}", err=True)
    raise typer.Exit(code)


app = typer.Typer(
    cls=Group,
    help="Emulate transformers on analog crossbars: rewrite an ONNX model for a device, run it, measure it.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from emu.version import __version__

        typer.echo(f"emu {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
