"""The command line: click commands, one file each; thin.

Nothing heavy is imported before a command runs, so that ``onnxedge --help`` answers at once.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import click

from onnxedge import __version__
from onnxedge.errors import OnnxEdgeError, shortened

_LINE = 2000  #: characters of the longest error; a model may name a value with a million
INTERRUPTED = 130  #: exit code after Ctrl-C, as shells have it

#: command -> the module of onnxedge.cli that holds it, under the command's own name
_COMMANDS = (
    "optimize",
    "compress",
    "distill",
    "finetune",
    "inspect",
    "sensitivity",
    "compare",
    "passes",
    "targets",
    "training",
)

_EPILOG = """\b
Examples:
  onnxedge optimize model.onnx --passes prune,fuse,int8 --calib calib.npz --eval test.npz
  onnxedge compress model.onnx --train train.npz --eval test.npz
  onnxedge passes show prune
  onnxedge inspect model.onnx --target ort-cpu
  onnxedge sensitivity model.onnx --calib calib.npz --eval test.npz --plot curves.html

\b
Shell completion of commands, options, passes and targets; add the line to the shell's start-up file:
  bash   eval "$(_ONNXEDGE_COMPLETE=bash_source onnxedge)"
  zsh    eval "$(_ONNXEDGE_COMPLETE=zsh_source onnxedge)"
  fish   _ONNXEDGE_COMPLETE=fish_source onnxedge | source
"""


class Commands(click.Group):
    """Load a command when it is asked for, and turn every error into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of --help."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command and return the command, None where there is none of that name."""
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(f"onnxedge.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and exit: 0 done, 1 our fault, 2 bad input, 130 interrupted."""
        given = list(sys.argv[1:] if args is None else args)
        verbose = _is_verbose(given)
        _prepare(verbose)
        try:
            code = super().main(given, prog_name or "onnxedge", complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
        except Exception as err:  # the one place where whatever went wrong becomes one line for the user
            code = _report_error(err, verbose)
        if standalone_mode:
            atexit.register(gc.freeze)  # a large graph takes seconds to take apart where the process ends
            sys.exit(code if isinstance(code, int) else 0)
        return code


def _is_verbose(args: Sequence[str]) -> bool:
    options = args[: args.index("--")] if "--" in args else args
    return any(option in ("--verbose", "-v", "-vq", "-qv") for option in options)


def _prepare(verbose: bool) -> None:
    """Keep the libraries' own warnings and logs off the user's screen, unless they are asked for."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  a caller may have closed them
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if verbose:
        logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
        logging.getLogger("onnxedge").setLevel(logging.DEBUG)
        return
    warnings.simplefilter("ignore")
    if not logging.getLogger().handlers:
        logging.getLogger().addHandler(logging.NullHandler())


def _report_error(err: Exception, verbose: bool) -> int:
    """Print an error as one line and return the exit code."""
    if isinstance(err, BrokenPipeError):  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    if isinstance(err, click.Abort):
        _say("interrupted")
        return INTERRUPTED
    if isinstance(err, click.exceptions.NoArgsIsHelpError):
        err.show()
        return err.exit_code
    if isinstance(err, click.ClickException):
        _say(f"error: {_usage(err)}")
        return err.exit_code
    if verbose:
        import traceback

        click.echo("".join(traceback.format_exception(err)), err=True, nl=False)
    if isinstance(err, OnnxEdgeError):
        _show_caret(err)
        _say(f"error: {err}")
        return err.exit_code
    if isinstance(err, MemoryError):
        _say("error: out of memory; a smaller model, fewer samples or a machine with more memory is needed")
        return 1
    if isinstance(err, OSError):
        _say(f"error: {err}")
        return 1
    hint = "" if verbose else "; run with --verbose for the traceback"
    _say(f"error: internal: {type(err).__name__}: {str(err)[:500]}{hint}")
    return 1


def _usage(err: click.ClickException) -> str:
    """Return a usage error without click's usage block: what is wrong, and where the options are listed."""
    message = err.format_message().rstrip(".")
    context = getattr(err, "ctx", None)
    if context is None:
        return message
    return f"{message[:1].lower()}{message[1:]}; see {context.command_path} --help"


def _show_caret(err: OnnxEdgeError) -> None:
    """Show where a pipeline text is wrong, to people; logs get the one line alone."""
    caret = getattr(err, "caret", None)
    if isinstance(caret, str) and sys.stderr.isatty():
        text, _, marker = caret.rpartition("\n")
        if text.isprintable():
            click.echo(f"  {text}\n  {marker}", err=True)


def _say(line: str) -> None:
    click.echo(shortened(line, _LINE), err=True)


@click.group(
    "onnxedge",
    cls=Commands,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(__version__, prog_name="onnxedge")
def main() -> None:
    """Make ONNX models small and fast by a pipeline of passes, and prove what came out."""
