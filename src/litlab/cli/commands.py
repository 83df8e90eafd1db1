"""The commands fit and eval. They check their arguments before they import torch, to report mistakes at once."""

import argparse
from typing import NoReturn

from litlab.cli.process import keep_freed_memory, prepare_process
from litlab.cli.settings import all_files, config_files, runs_folder, take_request
from litlab.errors import BadInput
from litlab.runs.directory import find


def fit_command(arguments: list[str]) -> int:
    """Train, then evaluate the best checkpoint on the validation split. The test split is never used."""
    # without -c, use the configuration of the run to start from
    request, settings = take_request(arguments)
    files = config_files(settings)
    if not files and request.source:
        if request.init and request.init.endswith(".ckpt"):
            raise BadInput("--init with a checkpoint file needs an experiment: -c configs/experiment/<name>.yaml.")
        settings = ["-c", str(find(runs_folder([]), request.source).config()), *settings]
    elif not files and request.resume:
        raise BadInput("--resume=auto needs an experiment: -c configs/experiment/<name>.yaml.")
    files = all_files(settings)
    # print the help
    if "-h" in arguments or "--help" in arguments:
        from litlab.cli.help import fit_help

        prepare_process(files)
        print(fit_help(settings, fit_command.__doc__ or ""))
        return 0
    # train
    from litlab.cli.lightning_cli import LitlabCLI
    from litlab.training.failures import explain_misconfiguration
    from litlab.training.fit import fit
    from litlab.training.interrupts import Interrupts

    prepare_process(files)
    with explain_misconfiguration(), Interrupts() as interrupts:
        cli = LitlabCLI(settings, request=request)
        if cli.device == "cpu":
            keep_freed_memory()
        fit(cli.job(arguments), interrupts)
    return 0


class EvalParser(argparse.ArgumentParser):
    """An argument parser that raises `BadInput` instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message, with an example of a valid command.

        Raises:
            BadInput: always.
        """
        raise BadInput(f"{message}; for example: litlab eval latest --split=val.")


def eval_command(arguments: list[str]) -> int:
    """Evaluate a run on its test or validation split. run.json counts the evaluations on the test split."""
    # find the run and its checkpoint
    parser = EvalParser(
        "litlab eval",
        allow_abbrev=False,
        description=eval_command.__doc__,
        epilog="Other options are those of litlab fit; they override the configuration of the run.",
    )
    parser.add_argument("run", help="latest, an experiment (its newest run), a run id, or a path")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="the split to evaluate on")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="the checkpoint to evaluate")
    options, overrides = parser.parse_known_args(arguments)
    run = find(runs_folder([]), options.run)
    run.checkpoint(options.checkpoint)
    settings = ["-c", str(run.config()), *overrides]
    # evaluate
    from litlab.cli.lightning_cli import LitlabCLI
    from litlab.training.evaluate import evaluate
    from litlab.training.failures import explain_misconfiguration

    prepare_process([run.config()])
    with explain_misconfiguration():
        cli = LitlabCLI(settings, run)
        if cli.device == "cpu":
            keep_freed_memory()
        evaluate(cli.job(arguments), options.split, options.checkpoint)
    return 0
