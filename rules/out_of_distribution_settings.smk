# Evaluation out of distribution: folders, flags and the files that their table needs. No rules here.
AWAY = f"{FOLDER}/away/{{away}}"
OTHER_TEXT = f"{LM_FOLDER}/away/{{away}}/corpus"
OTHER_NGRAM = f"{LM_FOLDER}/away/{{away}}/kneser-ney{{order}}"
OTHER_PAIRS = f"{MT_FOLDER}/away/{{away}}/pairs"
OTHER_BINARISED = f"{MT_FOLDER}/away/{{away}}/binarised"
OTHER_COPY = f"{MT_FOLDER}/away/{{away}}/copy"
OTHER_ROWS = f"{AWAY}/rows"
OTHER_NAMES = config["out_of_distribution"]["names"]


wildcard_constraints:
    # Never empty: what is not in the configuration is nowhere.
    away="|".join(sorted({name for name in OTHER_NAMES.values() if name})) or "none",


def other_data_flags():
    """Flags of the modules that prepare other data: how much of it, and where local data is."""
    folder = config["data_dir"] and os.path.expanduser(config["data_dir"])
    return flags({"limit": config["out_of_distribution"]["limit"], "data_dir": folder}, dashes=True)


def other_rows_module(wildcards):
    """The module that prepares rows or questions, and its flag for the task."""
    if wildcards.experiment == "squad":
        return "reproduction.data.shifted.questions"
    return f"reproduction.data.shifted.tasks --task {wildcards.dataset}"


def other_rows_flags(wildcards, input):
    """Where the rows come from: Bible versions are of the books that the stand-ins hold out."""
    return f"{flags({'trained': input.get('stand_ins')})} {other_data_flags()}"


def other_majority_flags(wildcards, input):
    """Where the training rows are, and those to evaluate."""
    return f"{task_data_flags(wildcards, input)} {flags({'evaluate_dir': input.other})}"


def evaluation_away_flags(wildcards):
    """Flags of the evaluation of a fine-tuned model on other rows."""
    return f"{task_flags(wildcards)} {flags(config[wildcards.experiment]['evaluation'])}"


def places():
    """(experiment, dataset, other data) of all models that are evaluated out of distribution."""
    found = [("language_modelling", LM["dataset"]["name"], OTHER_NAMES["language_modelling"])]
    found += [("translation", MT["dataset"]["name"], OTHER_NAMES["translation"])]
    found += [("glue", task, OTHER_NAMES.get(task)) for task in GLUE["dataset"]["tasks"]]
    found += [("squad", SQUAD["dataset"]["name"], OTHER_NAMES["squad"])]
    return [place for place in found if place[0] in EXPERIMENTS and place[2]]


def ood_metrics():
    """Every metrics file that the table needs: each model in and out of distribution, and the baselines without attention."""
    files = []
    for experiment, dataset, away in places():
        known = {"config": config["name"], "dataset": dataset, "away": away}
        baselines = {
            "language_modelling": [
                path.replace("{order}", order)
                for order in ORDERS
                for path in (f"{NGRAM}/metrics.json", f"{OTHER_NGRAM}/metrics@{{away}}.json")
            ],
            "translation": [f"{COPY}/metrics.json", f"{OTHER_COPY}/metrics@{{away}}.json"],
            "glue": [f"{MAJORITY}/metrics.json", f"{MAJORITY}/metrics@{{away}}.json"],
            "squad": [],
        }[experiment]
        files += [path.format(**known) for path in baselines]
        for name in ("metrics.json", f"metrics@{away}.json"):
            files += model_files(experiment, dataset, models(experiment), name)
    return files


def ood_tau_flags():
    """The tau of each experiment at which its models are contrasted, chosen before anything is measured."""
    found = []
    for experiment in dict.fromkeys(place[0] for place in places()):
        tau = config["out_of_distribution"]["taus"][experiment]
        tau = max(config[experiment]["pruning"]["taus"]) if tau is None else tau
        found += ["--tau", f"{experiment}={tau:g}"]
    return shlex.join(found)


OOD_METRICS = ood_metrics()
