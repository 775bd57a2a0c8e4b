"""The command line of both scripts: transformers' TrainingArguments, and dataclasses for the rest."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import datasets
import torch
import transformers
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import is_tensorboard_available

from attention_pruning import InputError
from pruning import PruningArguments
from reproduction.data.sources import DATA_DIR_VARIABLE
from reproduction.runs.command import HelpFormatter, limit_threads, refuse_sharding
from reproduction.runs.metrics import parse_labels


@dataclass
class ModelArguments:
    """Which model."""

    _argument_group_name = "model"

    model_name_or_path: str = field(
        metadata={
            "help": "folder, name on the hub, or minilm: the BERT weights that install with pip. A folder that was "
            "saved by a pruned run brings its mask along"
        }
    )
    model_revision: str = field(
        default="main",
        metadata={"help": "revision on the hub: a commit pins the model, main is whatever is newest"},
    )
    config_name: str | None = field(
        default=None, metadata={"help": "folder or name of the configuration, where it is not the model's"}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "folder or name of the tokenizer, where it is not the model's"}
    )
    token: str | None = field(
        default=None,
        repr=False,
        metadata={"help": "token for the hub, which no record repeats; the one of `hf auth login` unless given"},
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "folder for what comes from the hub, and for tokenised rows; the user's cache unless given"},
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "initialise weights whose shape differs, such as those of another task's head"}
    )

    @property
    def hub(self) -> dict[str, str]:
        """What is said about the hub: ``cache_dir`` and ``token``, where they are given."""
        options = {"cache_dir": self.cache_dir, "token": self.token}
        return {name: value for name, value in options.items() if value is not None}


@dataclass
class FolderArguments:
    """What becomes of a run that --output_dir holds."""

    _argument_group_name = "output folder"

    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "aliases": ["--overwrite"],
            "help": "start from scratch, and remove the training that --output_dir holds, if any",
        },
    )
    set_aside: bool = field(
        default=False,
        metadata={
            "help": "if --output_dir holds a training of another recipe, rename that folder and start from scratch"
        },
    )

    @property
    def way(self) -> str:
        """The same as ``run_folder.claim_folder`` names it."""
        return "overwrite" if self.overwrite_output_dir else "set_aside" if self.set_aside else "refuse"

    def check(self, training: TrainingArguments) -> None:
        """Refuse flags that contradict each other, or mean nothing without a training.

        Raises
        ------
        InputError
        """
        for name in ("overwrite_output_dir", "set_aside"):
            if getattr(self, name) and not training.do_train:
                raise InputError(f"--{name}: expected --do_train beside it, found none")
        if self.overwrite_output_dir and self.set_aside:
            raise InputError("--overwrite_output_dir: expected no --set_aside beside it, found both")
        if self.overwrite_output_dir and training.resume_from_checkpoint is not None:
            raise InputError("--overwrite_output_dir: expected no --resume_from_checkpoint beside it, found both")


@dataclass(kw_only=True)
class LengthArguments:
    """Flags about data that both scripts have; each adds ``max_seq_length`` and its own."""

    _argument_group_name = "data"

    data_dir: str | None = field(
        default_factory=lambda: os.environ.get(DATA_DIR_VARIABLE) or None,
        metadata={
            "help": f"local folder with the data; the environment variable {DATA_DIR_VARIABLE} sets the default, and "
            "without either it comes from the hub"
        },
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "name of a data set on the hub, or a folder with one, instead of the script's"}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "which configuration of --dataset_name"})
    train_file: str | None = field(
        default=None, metadata={"help": "csv, tsv or json file with rows to train on, instead of the script's data"}
    )
    validation_file: str | None = field(default=None, metadata={"help": "such a file with rows to evaluate on"})
    test_file: str | None = field(default=None, metadata={"help": "such a file with rows to predict"})
    pad_to_max_length: bool = field(
        default=True,
        metadata={
            "help": "pad every sequence to --max_seq_length, not to the longest of its batch. Needed where a pattern "
            "is gathered or applied: its rows and columns are the positions below --max_seq_length, and every batch "
            "then costs the same, so that times compare"
        },
    )
    prepared_dir: str | None = field(
        default=None,
        metadata={
            "help": "folder for tokenised rows, which runs of the same data, tokenizer and lengths share; the folder "
            "prepared in --cache_dir unless given"
        },
    )
    overwrite_cache: bool = field(default=False, metadata={"help": "tokenise again, whatever is there already"})
    max_train_samples: int | None = field(default=None, metadata={"help": "train on the first so many only"})
    max_eval_samples: int | None = field(default=None, metadata={"help": "evaluate on the first so many only"})
    max_predict_samples: int | None = field(default=None, metadata={"help": "predict the first so many only"})

    @property
    def is_own(self) -> bool:
        """Whether the user brings the data."""
        return any((self.dataset_name, self.train_file, self.validation_file, self.test_file))

    def check(self) -> None:
        """Refuse limits below 1, and two sources of data."""
        files = [f"--{name}" for name in ("train_file", "validation_file", "test_file") if getattr(self, name)]
        if self.dataset_name and files:
            raise InputError(f"--dataset_name: expected no other source of data beside it, found {files[0]}")
        if self.dataset_config_name and not self.dataset_name:
            raise InputError("--dataset_config_name: expected --dataset_name with it, found none")
        for name, value in dataclasses.asdict(self).items():
            if name.startswith(("max_", "n_best")) and value is not None and value < 1:
                raise InputError(f"--{name}: expected at least 1, found {value}")


@dataclass(frozen=True)
class Flags:
    """The parsed command line.

    Attributes
    ----------
    model : ModelArguments
    data : LengthArguments
        Or the script's own extension of it.
    pruning : PruningArguments
    files : FolderArguments
    training : TrainingArguments
    labels : dict
        For metrics.json.
    logging_dir : str or None
        Folder for numbers of a training, step by step.
    """

    model: ModelArguments
    data: Any
    pruning: PruningArguments
    files: FolderArguments
    training: TrainingArguments
    labels: dict[str, Any]
    logging_dir: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """All flags by name, as JSON has them, but for the token."""
        groups = (self.model, self.data, self.pruning, self.files)
        own = {name: value for group in groups for name, value in dataclasses.asdict(group).items() if name != "token"}
        return own | self.training.to_dict() | {"label": self.labels, "logging_dir": self.logging_dir}


class _Parser(HfArgumentParser):
    """One line on bad flags: the usage of some 150 of them would bury it."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def build_parser(description: str, data_class: type) -> HfArgumentParser:
    """All flags of a script, with their defaults; see :func:`parse_flags`."""
    kinds = (ModelArguments, data_class, PruningArguments, FolderArguments, TrainingArguments)
    parser = _Parser(kinds, description=description, formatter_class=HelpFormatter, allow_abbrev=False)
    run = parser.add_argument_group("run")
    run.add_argument(
        "--label", action="append", default=[], metavar="KEY=VALUE", help="copied into metrics.json; may be repeated"
    )
    run.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to OMP_NUM_THREADS")
    run.add_argument(
        "--logging_dir",
        "--logging-dir",
        help="folder for what is logged at every --logging_steps, in steps.csv, and with --report_to tensorboard for "
        "TensorBoard; unless it is given, there is no such table, and TensorBoard's files are in --output_dir",
    )
    # Where nobody watches, a bar is noise: transformers prints lines instead.
    parser.set_defaults(disable_tqdm=not sys.stderr.isatty(), dataloader_pin_memory=torch.cuda.is_available())
    for action in parser._actions:
        action.required = action.required or action.dest == "output_dir"
    return parser


def parse_flags(description: str, data_class: type, argv: Sequence[str] | None = None) -> Flags:
    """Read the command line, and set what concerns the whole process: threads and progress bars.

    Parameters
    ----------
    data_class : type
        The script's extension of :class:`LengthArguments`.

    Raises
    ------
    InputError
        For an unknown flag, a bad value, or flags that contradict one another.
    """
    parser = build_parser(description, data_class)
    refuse_sharding()  # TrainingArguments would set it up
    try:
        *groups, rest, unknown = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, ImportError) as error:  # TrainingArguments refuses a combination
        found = " ".join(str(error).split())
        raise InputError(f"flags: expected a combination that transformers accepts, found: {found}") from error
    if unknown:
        raise InputError(f"flags: expected some of those that --help lists, found {unknown[0]}")
    flags = Flags(*groups, labels=parse_labels(rest.label), logging_dir=rest.logging_dir)
    flags.data.check()
    training = flags.training
    refuse_sharding(fsdp=training.fsdp, deepspeed=training.deepspeed, parallelism_config=training.parallelism_config)
    if "tensorboard" in flags.training.report_to and not is_tensorboard_available():
        raise InputError("--report_to: expected the package tensorboard for tensorboard, found none")
    _check_purpose(flags)
    flags.files.check(flags.training)
    flags.pruning.check(pad_to_max_length=flags.data.pad_to_max_length)
    limit_threads(rest.threads)
    if flags.training.disable_tqdm:
        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()
    return flags


def _check_purpose(flags: Flags) -> None:
    training = flags.training
    if not (training.do_train or training.do_eval or training.do_predict or flags.pruning.save_attention_patterns):
        purposes = "--do_train, --do_eval, --do_predict or --save_attention_patterns"
        raise InputError(f"flags: expected {purposes}, found none of them")
