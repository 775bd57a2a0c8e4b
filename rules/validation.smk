# Refuse a configuration that config/schema.yaml does not allow, and fill in its defaults. No rules here.
from snakemake.exceptions import WorkflowError
from snakemake.utils import validate


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
    for experiment in ("language_modelling", "translation", "glue", "squad"):
        own = config[experiment]
        if foreign := sorted(set(own["pruning"]["control_seeds"] or []) - set(own["seeds"])):
            expected = f"expected some of the experiment's seeds, {own['seeds']}"
            raise WorkflowError(f"{experiment}.pruning.control_seeds: {expected}, found {foreign[0]}")


check_config()
