# Rules, scopes and controls of masks against each other: the files that the comparison needs. No rules here.


def comparison_models(experiment):
    """(variant, tau) of every model in the comparison: dense; then by tau data-informed, other choices, controls."""
    own = config[experiment]["mask_comparison"]
    choices = ["{rule}-{scope}".format(**choice) for choice in own["choices"]]
    # The experiment's own rule and scope are those of the variant data, which its figure has already.
    others = [choice for choice in choices if rule_and_scope(choice, experiment) != rule_and_scope("data", experiment)]
    # What is trained twice as long has no tau.
    longer = [("dense-longer", 0)] if "dense-longer" in own["controls"] else []
    variants = ["data", *others, *(control for control in own["controls"] if control != "dense-longer")]
    return [("dense", 0), *longer, *((variant, tau) for tau in own["taus"] for variant in variants)]


# The experiments whose masks are compared.
COMPARED = [
    name
    for name in ("language_modelling", "translation", "glue")
    if name in EXPERIMENTS and config[name]["mask_comparison"]["taus"]
]


def comparison_metrics():
    """Metrics of each of them, language modelling first; of understanding, every task."""
    found = []
    for experiment in COMPARED:
        own = config[experiment]["dataset"]
        for dataset in own.get("tasks") or [own["name"]]:
            found += model_files(experiment, dataset, comparison_models(experiment), "metrics.json")
    return found


COMPARISON_METRICS = comparison_metrics()
