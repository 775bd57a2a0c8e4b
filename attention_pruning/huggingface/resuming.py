"""The sums of a collection on disk, so that one which was cut short goes on where it was."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import InputError
from ..files.tensors import FileKind, read_stored, save_tensors
from ..files.whole import clear_rooms, file_name
from ..processes import process_count
from .collector import Collector

FILE = FileKind(
    "attention-pruning/collection/1",
    {"sums": torch.float64, "corners": torch.int64},
    ("collection", "batches", "digest", "sites"),
)


class PartialSums:
    """What was collected so far, in a file that is replaced as a whole.

    Under ``torch.distributed`` every process has a file of its own, named after its number.

    Parameters
    ----------
    path : str or Path
        Ends in .safetensors.
    every : float
        Seconds between two writings; 0 writes after every batch.
    model : PreTrainedModel
    collectors : dict
        By site. Given what the file holds, if there is one.
    facts : dict
        What is collected, beside the weights and the data; for JSON.

    Raises
    ------
    InputError
        If the folder is missing, or the file is of another collection or no such file at all.
    """

    def __init__(
        self,
        path: str | Path,
        every: float,
        model: PreTrainedModel,
        collectors: Mapping[str, Collector],
        facts: Mapping[str, object],
    ) -> None:
        self.path, self.every, self.collectors = _own_path(path), every, collectors
        self.collection = json.loads(json.dumps({**facts, "weights": _weights_fingerprint(model)}))
        self.batches, self.digest = 0, ""
        self._done, self._expected, self._written = 0, "", time.monotonic()
        clear_rooms(self.path.parent, self.path.name)  # of a process that was killed just after its last writing
        if self.path.exists():
            self._read(model.device)

    def has(self, batch: object) -> bool:
        """Whether the sums hold this batch, the next one of the data, already.

        Raises
        ------
        InputError
            If the batches so far are others than those that the sums were made from.
        """
        if self.batches == self._done:
            return False
        self._note(batch)
        if self.batches == self._done and self.digest != self._expected:
            raise InputError(
                f"{self.path}: expected the {self._done} batches that its sums are made from, in their order, found "
                "others (shuffled?); without this file the collection begins anew"
            )
        return True

    def add(self, batch: object) -> None:
        """Note that a batch is in the sums now, and write them if it is time to."""
        self._note(batch)
        self._done = self.batches
        if time.monotonic() - self._written >= self.every:
            self.write()

    def close(self) -> None:
        """Write what is not written yet; the file is kept, so that the same call is done at once.

        Raises
        ------
        InputError
            If there were fewer batches than those in the file.
        """
        if self.batches < self._done:
            raise InputError(
                f"{self.path}: expected the {self._done} batches that its sums are made from, found {self.batches}"
            )
        if self.digest != self._expected:
            self.write()

    def write(self) -> None:
        """Replace the file."""
        begun = sorted(site for site, one in self.collectors.items() if one.accumulator is not None)
        states = {site: self.collectors[site].accumulator.state() for site in begun}
        sums = [sums.flatten() for sums, _, _ in states.values()]
        corners = [F.pad(corners, (1, 0), value=number) for number, (_, corners, _) in enumerate(states.values())]
        tensors = {"sums": torch.cat(sums), "corners": torch.cat(corners)}
        sites = {site: facts for site, (_, _, facts) in states.items()}
        fields = {"collection": self.collection, "batches": self.batches, "digest": self.digest, "sites": sites}
        save_tensors(self.path, FILE, tensors, fields)
        self._expected, self._written = self.digest, time.monotonic()

    def _note(self, batch: object) -> None:
        self.batches += 1
        digest = hashlib.sha256(self.digest.encode())
        for name, value in sorted(batch.items()) if isinstance(batch, Mapping) else [("", batch)]:
            digest.update(name.encode())
            _update(digest, value)
        self.digest = digest.hexdigest()

    def _read(self, device: torch.device) -> None:
        stored = read_stored(self.path, FILE)
        found = stored.fields["collection"]
        for name in {**self.collection, **found}:
            if self.collection.get(name) != found.get(name):
                raise InputError(
                    f"{self.path}: expected sums of {name} {self.collection.get(name)}, found those of "
                    f"{found.get(name)}; without this file the collection begins anew"
                )
        self._done, self._expected = stored.fields["batches"], stored.fields["digest"]
        first = 0
        for number, (site, facts) in enumerate(sorted(stored.fields["sites"].items())):
            collector = self.collectors[site]
            if collector.lengths not in (None, tuple(facts["lengths"])):
                raise InputError(
                    f"{self.path}: expected sums of lengths {list(collector.lengths)} at {site}, found "
                    f"{facts['lengths']}; without this file the collection begins anew"
                )
            collector.lengths = tuple(facts["lengths"])
            accumulator, corners = collector.ready(), stored.tensors["corners"]
            last = first + math.prod(accumulator.shape)
            sums = stored.tensors["sums"][first:last].view(accumulator.shape)
            accumulator.restore(sums.to(device), corners[corners[:, 0] == number, 1:], facts)
            first = last


def _own_path(path: str | Path) -> Path:
    path = file_name(path)
    if path.suffix != ".safetensors" or not path.parent.is_dir():
        raise InputError(f"resume: expected the name of a .safetensors file in a folder that exists, found {path}")
    processes = process_count()
    if processes == 1:
        return path
    return path.with_suffix(f".{torch.distributed.get_rank()}-of-{processes}.safetensors")


def _weights_fingerprint(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        _update(digest, weight)
    return digest.hexdigest()[:16]


def _update(digest: hashlib._Hash, value: object) -> None:
    if not isinstance(value, Tensor):
        digest.update(repr(value).encode())
        return
    digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
