"""The command line: ``p2rec``.

Commands are loaded when they are called, so that ``p2rec --help`` starts in a blink.
"""

import inspect
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterable
from importlib import metadata
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from p2rec_core.errors import P2RecError

TRACEBACK_VARIABLE = "P2REC_TRACEBACK"
"""Any value other than 0 shows the traceback of an error."""


class CommandLine(App):
    """Shows a line per command in lists, and on a command's own page all that its docstring says, with examples."""

    def help_print(
        self,
        tokens: Annotated[str | Iterable[str] | None, Parameter(show=False)] = None,
        *,
        console: Annotated[Any, Parameter(parse=False)] = None,
    ) -> None:
        """Print the page of the command that ``tokens`` name; examples come last, in lines that can be copied."""
        given = tokens if tokens is None or isinstance(tokens, str) else list(tokens)
        command = self.parse_commands(given)[1][-1]
        if command.default_command is None or command is self:
            super().help_print(given, console=console)
            return
        line, text = command.help, inspect.getdoc(command.default_command) or ""
        words, _, examples = re.sub(r"^Examples?:$", "\0", text, flags=re.MULTILINE).partition("\0")
        command.help = words
        try:
            super().help_print(given, console=console)
        finally:
            command.help = line
        if examples:
            shown = console or self.console
            shown.print(f"\nExamples:{examples.rstrip()}", highlight=False, markup=False, soft_wrap=True)


app = CommandLine(
    name="p2rec",
    help="P2Rec: user-level LLM fine-tuning for sequential recommendation, as cached stages.",
    help_epilogue="Exit status: 0 done; 1 other; 2 arguments or settings; 3 data; 4 store; 5 model; 6 refused; "
    "7 unsound; 8 memory; 130 interrupted.",
    suppress_keyboard_interrupt=False,  # main says how to go on
    version=lambda: metadata.version("p2rec"),
    version_flags=["--version"],
)
app.command("flows.cli.init:init", name="init", help="Write a commented configuration for a file of one's own.")
app.command("flows.cli.run:run", name="run", help="Run all eight stages on a dataset.")
app.command("flows.cli.run:stage", name="stage", help="Run one stage ad hoc.")
app.command("flows.cli.refresh:refresh", name="refresh", help="Bring the current snapshot up to date, with a gate.")
app.command("flows.cli.refresh:nights", name="nights", help="Cut a dataset into nights to try a refresh with.")
app.command("deployments.serve:serve", name="serve", help="Serve the flows, with a Prefect server and its interface.")
app.command("flows.cli.show:show", name="show", help="Show a snapshot: artefacts, lineage, sizes, what a run would do.")
app.command("flows.cli.query:query", name="query", help="Ask a snapshot with SQL.")
app.command("flows.cli.settings:settings", name="settings", help="List settings: value, default, range, meaning.")

app.command("flows.cli.snapshots:snapshots", name="snapshots", help="List the snapshots of a dataset.")
app.command("flows.cli.snapshots:diff", name="diff", help="Show what is different between two snapshots.")
app.command("flows.cli.snapshots:promote", name="promote", help="Make an older or newer snapshot the current one.")
app.command("flows.cli.snapshots:rollback", name="rollback", help="Go back to the snapshot before the current one.")
app.command("flows.cli.snapshots:pin", name="pin", help="Keep a snapshot from being forgotten.")
app.command("flows.cli.snapshots:unpin", name="unpin", help="Take the pin of a snapshot back.")
app.command("flows.cli.snapshots:gc", name="gc", help="Remove what no snapshot and no experiment needs.")
app.command("flows.cli.bucket:push", name="push", help="Copy the current snapshot into a bucket, such as S3.")
app.command("flows.cli.bucket:pull", name="pull", help="Copy the current snapshot of a bucket into a store.")
app.command("flows.cli.doctor:doctor", name="doctor", help="Check the whole store, and mend it.")

app.command("flows.cli.outputs:recommend", name="recommend", help="Recommend items to users, as Parquet or CSV.")
app.command("flows.cli.outputs:neighbours", name="neighbours", help="The items that are most similar to an item.")
app.command("flows.cli.outputs:export", name="export", help="Write embeddings or a model for other programs.")

app.command("flows.cli.track:track", name="track", help="Log curves and metrics to TensorBoard or MLflow.")

app.command("flows.cli.completion:completion", name="completion", help="Print a shell's completion script.")
app.command("flows.cli.experiment:report", name="report", help="Make the report of an experiment.")

experiment_app = App(name="experiment", help="Experiments: datasets x backbones x arms x seeds as cached cells.")
experiment_app.command("flows.cli.experiment:run", name="run", help="Compute what is missing of an experiment.")
experiment_app.command("flows.cli.experiment:show", name="show", help="Show which cells are there.")
experiment_app.command("flows.cli.experiment:list_experiments", name="list", help="List experiments.")
app.command(experiment_app)

data_app = App(name="data", help="Datasets: list, fetch, describe, import, remove.")
data_app.command("flows.cli.data:list_datasets", name="list", help="List known and imported datasets.")
data_app.command("flows.cli.data:fetch", name="fetch", help="Find or download a known dataset and verify it.")
data_app.command("flows.cli.data:describe", name="describe", help="Statistics of a dataset.")
data_app.command("flows.cli.data:import_file", name="import", help="Check a file of interactions and give it a name.")
data_app.command("flows.cli.data:remove", name="remove", help="Forget the name of an imported dataset.")
app.command(data_app)


def main() -> None:
    """Run the command line; an error is one message with its remedy, and an exit status of its own."""
    try:
        app(exit_on_error=False)
    except CycloptsError:
        sys.exit(2)  # it was printed
    except P2RecError as error:
        if os.environ.get(TRACEBACK_VARIABLE, "0") != "0":
            traceback.print_exc()
        print(f"error: {error.problem}\n  {error.remedy}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        print(f"\n{_interrupted(sys.argv[1:])}", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def _interrupted(words: list[str]) -> str:
    """What to say to somebody who pressed Ctrl-C."""
    again = shlex.join(["p2rec", *words])
    if words[:1] in (["run"], ["stage"], ["refresh"]) or words[:2] == ["experiment", "run"]:
        what = "what is finished is kept, and the same command goes on from the last checkpoint"
    else:
        what = "nothing is left half done, and the same command may be run again"
    return f"interrupted; {what}:\n  {again}"
