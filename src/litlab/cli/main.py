"""The entry point: a table of commands, and the exit status.

Heavy packages are imported only when a command needs them, so that `litlab --help` is fast.
"""

import difflib
import importlib
import sys

import litlab
from litlab.errors import BadInput, StoppedByGuard

COMMANDS = {
    "fit": (
        "litlab.cli.commands",
        "train: litlab fit -c configs/experiment/mnist_mlp.yaml [--model.learning_rate=3e-3 ...]",
    ),
    "eval": ("litlab.cli.commands", "evaluate a run: litlab eval latest [--split=test]"),
}
EXIT_CODES = "exit status: 0 done, 2 bad input, 3 stopped by a guard, 75 interrupted and resumable"


def usage() -> str:
    """Return the table of commands."""
    table = "\n".join(f"  {name:<6} {summary}" for name, (_, summary) in COMMANDS.items())
    return f"litlab {litlab.__version__}\n\n{table}\n\nlitlab <command> --help lists its options; {EXIT_CODES}"


def main() -> int:
    """Run the command that the command line names and return the exit status."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(litlab.__version__)
        return 0
    try:
        return run(arguments[0], arguments[1:])
    except KeyboardInterrupt:
        return 75
    except BadInput as error:
        print(f"litlab: {error}", file=sys.stderr)
        return 2
    except StoppedByGuard as error:
        print(f"litlab: {error}", file=sys.stderr)
        return 3


def run(command: str, arguments: list[str]) -> int:
    """Run one command and return its exit status.

    Raises:
        BadInput: if there is no such command, or if the command cannot use its arguments.
    """
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        raise BadInput(
            f"there is no command {command!r}{f'; did you mean {near[0]!r}' if near else ''}; commands are {', '.join(COMMANDS)}."
        )
    module = importlib.import_module(COMMANDS[command][0])
    return getattr(module, f"{command}_command")(arguments)
