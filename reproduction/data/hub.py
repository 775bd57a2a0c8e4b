"""Data sets from the Hugging Face hub at a pinned revision, and what to say when it cannot be reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_pruning import InputError
from reproduction.data.wikitext import DATA_DIR_VARIABLE

if TYPE_CHECKING:
    from datasets import DatasetDict


def load_from_hub(dataset: str, config: str, revision: str, folder: str, **options: str) -> DatasetDict:
    """Return all splits of a data set, from the hub or from its cache on this machine.

    Parameters
    ----------
    folder : str
        What a local folder would hold instead; the message of the error names it.
    options
        ``cache_dir`` and ``token``, if they are not the user's own.

    Raises
    ------
    InputError
        If the hub cannot be reached and the cache has no copy.
    """
    # Imported here because it takes seconds and the local folder does not need it.
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return datasets.load_dataset(dataset, config, revision=revision, **options)
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{folder}: expected {dataset} ({config}) from the Hugging Face hub, found: {reason}; connect, or name a "
            f"local folder that holds {folder}/ with {DATA_DIR_VARIABLE}"
        ) from error
