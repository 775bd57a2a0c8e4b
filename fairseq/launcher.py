"""Run one of fairseq's commands with the plug-in loaded: its own flags, ours, and errors in one line."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.multiprocessing import ProcessExitedException

import shims
from attention_pruning import InputError
from processes import CPU_BACKENDS, run_processes
from reproduction.runs.command import refuse_sharding, run_main
from reproduction.runs.folder import add_folder_flags, way
from reproduction.runs.record import RunRecord

#: Commands that read batches of sources, so that the side of their padding matters.
READS_SOURCES = ("train", "generate", "interactive")
_LOGGING_DIR = re.compile("^--logging[_-]dir(?==|$)")
TRUE_WORDS, FALSE_WORDS = ("true", "1", "yes"), ("false", "0", "no")


def prepare() -> None:
    """:func:`shims.install`, or an error in one line and the end of the process."""
    try:
        shims.install()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run(command: str, description: str | None) -> None:
    """Run ``fairseq_cli.COMMAND`` on this process's arguments and exit.

    Parameters
    ----------
    command : str
        ``preprocess``, ``train``, ``generate`` or ``interactive``.
    description : str, optional
        What --help says before fairseq's own help.
    """
    run_main(functools.partial(_run, command, description), takes_device=command in ("train", "generate"))


def _run(command: str, description: str | None) -> int:
    arguments = sys.argv[1:]
    if "-h" in arguments or "--help" in arguments:
        print(f"{(description or '').strip()}\n\n{_own_flags(command).format_help()}\nfairseq's own flags:\n")
    other = "refuse"
    passed = arguments
    if command == "train":
        check_whole_models(arguments)
        passed, other = take_folder_flags(arguments)
    rewritten = rewrite(command, passed)
    if number := _own_processes(command, arguments):
        absent = [flag for flag in CPU_BACKENDS.items() if command == "train" and not _value(arguments, flag[0])]
        backends = [word for flag in absent for word in flag]
        return run_processes(Path(sys.argv[0]).resolve(), [*arguments, *backends], number)
    record = RunRecord(f"fairseq/{command}.py", {"arguments": arguments})
    sys.argv[1:] = rewritten
    module = importlib.import_module(f"fairseq_cli.{command}")
    if command == "generate" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import generation_run

        module.main = generation_run.main
    if command == "train":
        import training_run

        module.main = functools.partial(training_run.main, other=other, record=record)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, pass_on)
    try:
        module.cli_main()
    except ProcessExitedException as error:  # one for each GPU, which fairseq starts
        return error.exit_code if error.exit_code > 0 else 128 - error.exit_code
    except InputError:
        raise
    except Exception as error:
        # fairseq replaces what goes wrong while a checkpoint is loaded with a general remark.
        if isinstance(error.__context__, InputError):
            raise error.__context__ from None
        raise
    if command == "train":
        return 0  # the training has left its record, with what it knows of its folder
    folder = _output_folder(command, rewritten)
    if folder is not None and os.environ.get("RANK", "0") == "0":
        record.write(folder / "run.json")
    return 0


def pass_on(number: int, frame: object) -> None:
    """Handle a signal while processes of one training run: they save what they have, and this one waits for them."""
    children = multiprocessing.active_children()
    if not children:
        sys.exit(128 + number)
    for child in children:
        os.kill(child.pid, number)


def check_whole_models(arguments: list[str]) -> None:
    """Refuse what spreads the weights or the optimiser of a model over processes; fairseq needs other packages for it.

    Raises
    ------
    InputError
    """
    spreading = {
        "ddp_backend": _value(arguments, "--ddp-backend") in ("fully_sharded", "slowmo"),
        "zero_sharding": _value(arguments, "--zero-sharding") not in (None, "none"),
        "model_parallel_size": (_value(arguments, "--model-parallel-size") or "1") != "1",
        "pipeline_model_parallel": "--pipeline-model-parallel" in arguments,
    }
    values = {name: _value(arguments, f"--{name.replace('_', '-')}") or "it" for name in spreading}
    flags = {name.replace("_", "-"): values[name] for name, spreads in spreading.items() if spreads}
    refuse_sharding(**flags)


def take_folder_flags(arguments: list[str]) -> tuple[list[str], str]:
    """Arguments without ``--overwrite`` and ``--set-aside``, and what becomes of a run of another recipe."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_folder_flags(parser.add_argument_group())
    found, rest = parser.parse_known_args(arguments)
    return rest, way(found)


def rewrite(command: str, arguments: list[str]) -> list[str]:
    """fairseq's arguments for ours.

    ``--user-dir`` is the plug-in where none is given. ``--left-pad-source`` (fairseq 0.12.2: no value, meaning False)
    may have a value, and is False where it is absent. ``--beyond`` of a translating command joins
    ``--model-overrides``, and ``--logging_dir`` is ``--tensorboard-logdir``.

    Raises
    ------
    InputError
        For a value that is none, or a checkpoint that cannot be read.
    """
    arguments = [_LOGGING_DIR.sub("--tensorboard-logdir", argument) for argument in arguments]
    if not _value(arguments, "--user-dir"):
        arguments += ["--user-dir", str(shims.PLUGIN)]
    if command in READS_SOURCES:
        arguments = _pad_source(arguments)
    if command in ("generate", "interactive"):
        paths = filter(None, (_value(arguments, "--path") or "").split(os.pathsep))
        arguments = _override_model(arguments, pruned=[_prunes(path) for path in paths])
    if command == "train":
        for flag in ("--restore-file", "--finetune-from-model"):
            path = _value(arguments, flag)
            if path and path != "checkpoint_last.pt":
                _prunes(path)
    return arguments


def _own_flags(command: str) -> argparse.ArgumentParser:
    """The flags that fairseq's own --help does not list."""
    parser = argparse.ArgumentParser(prog=f"{command}.py", add_help=False, usage=argparse.SUPPRESS)
    if command == "train":
        from plugin.flags import add_flags

        add_flags(
            parser.add_argument_group(
                "Attention Pruning (with --arch ap_..., the twin of any transformer architecture)"
            )
        )
        add_folder_flags(parser.add_argument_group("the folder of --save-dir"))
    if command in ("generate", "interactive"):
        group = parser.add_argument_group("Attention Pruning")
        from plugin.flags import BEYOND, BEYOND_FLAGS

        group.add_argument(*BEYOND_FLAGS, choices=BEYOND, help=_beyond_help())
    if command in READS_SOURCES:
        parser.add_argument_group("changed default").add_argument(
            "--left-pad-source", metavar="BOOL", help="pad sources on the left (default: False, unlike fairseq's)"
        )
    return parser


def _beyond_help() -> str:
    return (
        "attention at positions that the pattern of a pruned checkpoint does not cover: unpruned (dense, the default), "
        "unpruned in the translation and an error in the source (decoding), or always an error"
    )


def _value(arguments: list[str], flag: str) -> str | None:
    """What stands behind the last occurrence of a flag, as ``--flag value`` or ``--flag=value``."""
    found = None
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            found = arguments[position + 1]
        elif argument.startswith(f"{flag}="):
            found = argument.partition("=")[2]
    return found


def _take(arguments: list[str], flag: str) -> tuple[list[str], str | None]:
    """Arguments without a flag and its value, and the value."""
    value, rest = _value(arguments, flag), []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == flag:
            skip = True
        elif not argument.startswith(f"{flag}="):
            rest.append(argument)
    return rest, value


def _pad_source(arguments: list[str]) -> list[str]:
    left, rest = False, []
    words = iter(enumerate(arguments))
    for position, argument in words:
        if argument.partition("=")[0] != "--left-pad-source":
            rest.append(argument)
            continue
        following = arguments[position + 1].lower() if position + 1 < len(arguments) else ""
        value = argument.partition("=")[2].lower()
        if not value and following in TRUE_WORDS + FALSE_WORDS:
            value = following
            next(words)
        if value and value not in TRUE_WORDS + FALSE_WORDS:
            raise InputError(f"--left-pad-source: expected True or False, found {value!r}")
        left = value in TRUE_WORDS
    return rest if left else [*rest, "--left-pad-source"]


def _override_model(arguments: list[str], pruned: Sequence[bool]) -> list[str]:
    from plugin.flags import BEYOND, BEYOND_FLAGS, GIVES_WEIGHTS

    beyond = None
    for flag in BEYOND_FLAGS:
        arguments, found = _take(arguments, flag)
        beyond = found if beyond is None else beyond
    if beyond is not None and beyond not in BEYOND:
        raise InputError(f"--beyond: expected one of {', '.join(BEYOND)}, found {beyond!r}")
    if beyond is not None and pruned and not any(pruned):
        raise InputError("--beyond: expected a pruned checkpoint, found a dense one, which has no pattern to go beyond")
    arguments, given = _take(arguments, "--model-overrides")
    try:
        overrides = ast.literal_eval(given or "{}")
    except (ValueError, SyntaxError) as error:
        raise InputError(f"--model-overrides: expected a Python dictionary, found {given!r}") from error
    own = {"beyond_pattern": beyond or "dense"}
    if any(argument.partition("=")[0] == "--print-alignment" for argument in arguments):
        own[GIVES_WEIGHTS] = True
    return [*arguments, "--model-overrides", repr(own | overrides)]


def _prunes(path: str) -> bool:
    """Whether the model in a checkpoint is pruned; an error if it is no checkpoint."""
    from plugin.attention import MASK_NAME
    from plugin.checkpoint import read_checkpoint

    return any(name.endswith(f".{MASK_NAME}") for name in read_checkpoint(path)["model"])


def _own_processes(command: str, arguments: list[str]) -> int:
    """How many processes to start here, because fairseq does not: trainings without a GPU, and translations.

    0 for none. Who gives a rank, or the address where processes meet, starts them by hand.
    """
    size = _value(arguments, "--distributed-world-size") or "1"
    by_hand = ("--distributed-init-method", "--distributed-rank")
    started = any(_value(arguments, flag) for flag in by_hand) or "RANK" in os.environ
    wanted = command == "generate" or (command == "train" and "--cpu" in arguments)
    number = int(size) if wanted and not started and size.isdigit() and int(size) > 1 else 0
    if number and command == "generate" and "--cpu" not in arguments and torch.cuda.is_available():
        _require_gpus(number)
    return number


def _require_gpus(number: int) -> None:
    if number > torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise InputError(f"--distributed-world-size: expected at most the {found} GPUs of this machine, found {number}")


def _output_folder(command: str, arguments: list[str]) -> Path | None:
    flag, default = {
        "preprocess": ("--destdir", "data-bin"),
        "generate": ("--results-path", None),
        "interactive": ("--results-path", None),
    }[command]
    folder = _value(arguments, flag) or default
    return Path(folder) if folder and Path(folder).is_dir() else None
