"""What tests of several subprojects read."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def board() -> Callable[[Path], dict[str, dict[int, float]]]:
    """Reads a folder as TensorBoard does: each name's values by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder: Path) -> dict[str, dict[int, float]]:
        events = EventAccumulator(str(folder)).Reload()
        return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}

    return read
