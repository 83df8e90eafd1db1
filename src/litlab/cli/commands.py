"""The commands of the core. What is wrong with their arguments is said before torch is imported."""

import argparse
from typing import NoReturn

from litlab.cli.process import keep_freed_memory, prepare_process
from litlab.cli.settings import all_files, config_files, runs_folder, take_request
from litlab.errors import BadInput
from litlab.runs.directory import find


def fit_command(arguments: list[str]) -> int:
    """Train, then evaluate the best checkpoint on the validation split. The test split is never touched."""
    request, settings = take_request(arguments)
    files = config_files(settings)
    if not files and request.source:
        if request.init and request.init.endswith(".ckpt"):
            raise BadInput("--init with a checkpoint file needs an experiment: -c configs/experiment/<name>.yaml.")
        settings = ["-c", str(find(runs_folder([]), request.source).config()), *settings]
    elif not files and request.resume:
        raise BadInput("--resume=auto needs an experiment: -c configs/experiment/<name>.yaml.")
    files = all_files(settings)
    if "-h" in arguments or "--help" in arguments:
        from litlab.cli.help import fit_help

        prepare_process(files)
        print(fit_help(settings, fit_command.__doc__ or ""))
        return 0
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
    """Answers like every other part of the command line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one sentence.

        Raises:
            BadInput: always.
        """
        raise BadInput(f"{message}, as in litlab eval latest --split=val.")


def eval_command(arguments: list[str]) -> int:
    """Evaluate a run on one of its splits. Every evaluation on the test split is counted in run.json."""
    parser = EvalParser(
        "litlab eval",
        allow_abbrev=False,
        description=eval_command.__doc__,
        epilog="Other options are those of litlab fit and override the run's config.",
    )
    parser.add_argument("run", help="latest, an experiment (its newest run), a run id, or a path")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="which examples to evaluate on")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which weights")
    options, overrides = parser.parse_known_args(arguments)
    run = find(runs_folder([]), options.run)
    run.checkpoint(options.checkpoint)
    settings = ["-c", str(run.config()), *overrides]
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
