"""The command line: parse, call a stage function, print.

Exit codes: 0 done, 1 a run that failed, 2 the input is at fault (one clear sentence, no traceback), 130 interrupted.
Heavy imports happen inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from typing import Annotated

import typer

from glotlift import __version__
from glotlift.cli import data, explain, stages, tasks
from glotlift.errors import GlotliftError
from glotlift.processes import prints

app = typer.Typer(
    name="glotlift",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"glotlift {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Lift an LLM into languages it was never labelled in: align on translated questions, verify, explain, ship."""


app.command()(stages.demo)
app.command()(stages.run)
app.command()(stages.sweep)
app.command()(stages.diagnose)
app.command()(stages.train)
app.command()(stages.merge)
app.command("eval")(stages.evaluate)
app.command()(stages.compare)
app.add_typer(explain.app, name="explain")
app.command()(stages.report)
app.add_typer(data.app, name="data")
app.add_typer(tasks.app, name="tasks")
app.command()(tasks.languages)
app.command()(tasks.models)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits the process."""
    _quiet()
    try:
        app(arguments, prog_name="glotlift")
    except GlotliftError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail(_INTERRUPTED, 130)
    except SystemExit as end:
        if end.code == 130:  # typer has seen the interrupt first, and says nothing
            _fail(_INTERRUPTED, 130)
        raise
    except OSError as error:
        if error.errno not in _WRITING_FAULTS:
            raise
        _fail(f"{error.filename or 'output'}: cannot be written ({error.strerror})", 2)


_INTERRUPTED = "interrupted; finished work is kept, start the same command again to go on"
_WRITING_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EFBIG)


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(code)


def _quiet() -> None:
    """Send our own log lines to stderr, and keep libraries from printing their own progress."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("glotlift")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if prints() else logging.ERROR)
    logger.propagate = False
    if not sys.warnoptions:
        import warnings

        warnings.filterwarnings("ignore", category=FutureWarning)
