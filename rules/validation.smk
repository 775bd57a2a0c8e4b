# Refuse a configuration that config/schema.yaml does not allow, fill in its defaults, keep the seeds asked for. No rules here.
from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

ALL_EXPERIMENTS = ("language_modelling", "translation", "glue", "squad")


def check_config():
    """One line for the first fault; Snakemake's own message is followed by the whole schema."""
    try:
        validate(config, str(Path(workflow.basedir) / "config" / "schema.yaml"))
    except WorkflowError as error:
        fault = error.__context__
        if not hasattr(fault, "absolute_path"):
            raise
        files = ", ".join(map(str, workflow.overwrite_configfiles)) or "config/quick.yaml"
        place = ".".join(map(str, fault.absolute_path)) or "top level"
        expected = ""
        if fault.validator == "additionalProperties":
            expected = f"; expected some of {', '.join(fault.schema['properties'])}"
        raise WorkflowError(f"{files}: {place}: {fault.message}{expected}") from None
    for experiment in ALL_EXPERIMENTS:
        own = config[experiment]
        if foreign := sorted(set(own["pruning"]["control_seeds"] or []) - set(own["seeds"])):
            expected = f"expected some of the experiment's seeds, {own['seeds']}"
            raise WorkflowError(f"{experiment}.pruning.control_seeds: {expected}, found {foreign[0]}")
    tasks = config["glue"]["dataset"]["tasks"]
    if foreign := sorted(set(config["glue"]["task_lengths"]) - set(tasks)):
        raise WorkflowError(f"glue.task_lengths: expected some of the tasks, {', '.join(tasks)}, found {foreign[0]}")


def keep_first_seeds():
    """A long run in parts: the first seeds now, the others when they are asked for."""
    for experiment in ALL_EXPERIMENTS:
        own = config[experiment]
        own["seeds"] = own["seeds"][: config["first_seeds"]]
        if own["pruning"]["control_seeds"] is not None:
            own["pruning"]["control_seeds"] = [seed for seed in own["pruning"]["control_seeds"] if seed in own["seeds"]]


check_config()
keep_first_seeds()
