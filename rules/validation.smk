# The configuration, checked before anything is planned. No rules here.
import math

import yaml
from jsonschema import Draft202012Validator, ValidationError, validators
from snakemake.common.configfile import load_configfile
from snakemake.exceptions import WorkflowError

ALL_EXPERIMENTS = ("language_modelling", "translation", "glue", "squad")

# Experiments without a section in the configuration.
ABSENT = set()


def check_config():
    """Fill in the defaults of the schema; one line for the first fault.

    Snakemake's own validate() takes a second to read the schema, at every start of every job on a cluster, and prints the whole schema with a fault.
    """
    schema = read_schema()
    try:
        # Checked first: defaults are filled in before it is looked what they are filled into.
        for validator in (Draft202012Validator, filling_in(Draft202012Validator)):
            validator(schema).validate(config)
    except ValidationError as fault:
        files = ", ".join(map(str, workflow.overwrite_configfiles)) or "config/quick.yaml"
        place = ".".join(map(str, fault.absolute_path)) or "top level"
        expected = ""
        if fault.validator == "additionalProperties":
            expected = f"; expected some of {', '.join(fault.schema['properties'])}"
        raise WorkflowError(f"{files}: {place}: {fault.message}{expected}") from None
    if fault := unusable(config):
        raise WorkflowError(fault)
    if absent := [experiment for experiment in config["experiments"] if experiment not in config]:
        raise WorkflowError(f"experiments: expected a section {absent[0]} in the configuration, found none")
    for experiment in ALL_EXPERIMENTS:
        if experiment not in config:
            config[experiment] = stand_in(experiment)
        contrasted, taus = config["out_of_distribution"]["taus"][experiment], config[experiment]["pruning"]["taus"]
        if contrasted is not None and experiment not in ABSENT and contrasted not in taus:
            expected = f"expected one of {experiment}.pruning.taus, {taus}"
            raise WorkflowError(f"out_of_distribution.taus.{experiment}: {expected}, found {contrasted}")
    for experiment in ("language_modelling", "translation", "glue"):
        check_controls(experiment)
    pairs = config["translation"]["dataset"]
    if config["translation"]["pairs_comparison"]["fractions"] and "pairs_fraction" not in pairs[pairs["source"]]:
        expected = "expected none of the source"
        raise WorkflowError(f"translation.pairs_comparison.fractions: {expected} {pairs['source']}, found some")
    tasks = config["glue"]["dataset"]["tasks"]
    if foreign := sorted(set(config["glue"]["task_lengths"]) - set(tasks)):
        raise WorkflowError(f"glue.task_lengths: expected some of the tasks, {', '.join(tasks)}, found {foreign[0]}")


def read_schema():
    """By libyaml, where PyYAML was built with it: that is ten times as fast."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load((Path(workflow.basedir) / "config" / "schema.yaml").read_text(encoding="utf-8"), loader)


def filling_in(validator):
    """The same validator, which gives properties their defaults, as jsonschema's documentation has it."""
    check = validator.VALIDATORS["properties"]

    def fill_in(validator, properties, instance, schema):
        for name, inner in properties.items():
            if "default" in inner:
                instance.setdefault(name, inner["default"])
        yield from check(validator, properties, instance, schema)

    return validators.extend(validator, {"properties": fill_in})


def unusable(values, place=""):
    """Where something stands that no schema refuses and no job can be given, and what; None if nowhere.

    YAML can say nan and infinity, which no bound excludes, and characters that no command line can hold.
    """
    if isinstance(values, float) and not math.isfinite(values):
        return f"{place}: expected a number, found {values}"
    if isinstance(values, str) and not values.isprintable():
        return f"{place}: expected text that can be printed, found {values!r}"
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    found = (unusable(value, f"{place}.{name}" if place else str(name)) for name, value in inner)
    return next(filter(None, found), None)


def check_controls(experiment):
    """Controls that an experiment cannot have: sinks behind a memory, and the mask of another seed where there is one."""
    own = config[experiment]["mask_comparison"]
    place = f"{experiment}.mask_comparison.controls"
    for control in own["controls"] if own["taus"] else []:
        if control.endswith("-sinks") and experiment == "language_modelling":
            expected = "expected no masks with sinks, since memory slots come before the first positions"
            raise WorkflowError(f"{place}: {expected}, found {control}")
        if control == "other-seed" and len(config[experiment]["seeds"]) == 1:
            raise WorkflowError(f"{place}: expected two seeds at least with other-seed, found one")


def stand_in(experiment):
    """The settings of an experiment that a configuration has no section for, so that its rules can be read: smoke's.

    Nothing of it is run: a target of it is refused.
    """
    ABSENT.add(experiment)
    smoke = load_configfile(str(Path(workflow.basedir) / "config" / "smoke.yaml"))
    filling_in(Draft202012Validator)(read_schema()).validate(smoke)
    return smoke[experiment]


def asked_for(target, files, *keys):
    """Input of a target: its files, or one line if the configuration has nothing for it, before anything runs."""

    def found(wildcards):
        value = config
        for place, key in enumerate(keys):
            if key in ABSENT:
                raise WorkflowError(f"{target}: expected a section {key} in the configuration, found none")
            value = value[key]
        if not value or (isinstance(value, dict) and not any(value.values())):
            raise WorkflowError(f"{target}: expected something in {'.'.join(keys)} of the configuration, found nothing")
        return files

    return found


# The seeds of each experiment, also those that a command does not ask for.
ALL_SEEDS = {}


def keep_first_seeds():
    """A long run in parts: the first seeds now, the others when they are asked for."""
    for experiment in ALL_EXPERIMENTS:
        own = config[experiment]
        ALL_SEEDS[experiment] = own["seeds"]
        own["seeds"] = own["seeds"][: config["first_seeds"]]


check_config()
keep_first_seeds()
