"""What tests of several subprojects read, the order of all of them, and what `make test-fast` does with less."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import is_hypothesis_test, settings

#: Files that take longest, begun first: a worker that began them last would end long after the others.
FIRST = (
    "workflow/test_smoke.py",
    "fairseq_plugin/test_scripts.py",
    "workflow/test_interrupted_workflow.py",
    "bert/test_bert_processes.py",
    "fairseq_plugin/test_training_run.py",
    "attention_pruning/test_triton.py",
    "workflow/test_plan.py",
    "benchmarks/test_gpu_benchmarks.py",
)
#: Examples of each law in `make test-fast`, instead of dozens.
FEW_EXAMPLES = 5


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, then those with a slow test; else as they were found."""
    here = Path(__file__).parent
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def place(item: pytest.Item) -> tuple[int, bool]:
        name = item.path.relative_to(here).as_posix() if item.path.is_relative_to(here) else ""
        return FIRST.index(name) if name in FIRST else len(FIRST), item.path not in slow

    items.sort(key=place)
    if os.environ.get("AP_FAST_TESTS"):
        for law in {item.obj for item in items if is_hypothesis_test(getattr(item, "obj", None))}:
            # Hypothesis has no other way to change what a test has been decorated with.
            asked = law._hypothesis_internal_use_settings
            law._hypothesis_internal_use_settings = settings(asked, max_examples=min(asked.max_examples, FEW_EXAMPLES))


@pytest.fixture
def board() -> Callable[[Path], dict[str, dict[int, float]]]:
    """Reads a folder as TensorBoard does: each name's values by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder: Path) -> dict[str, dict[int, float]]:
        events = EventAccumulator(str(folder)).Reload()
        return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}

    return read
