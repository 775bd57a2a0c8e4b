# Models out of distribution: other data in the form of the training data, the same evaluations, one table.
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


rule other_text:
    input:
        rules.corpus.output,
    output:
        description=f"{OTHER_TEXT}/corpus.json",
        vocabulary=f"{OTHER_TEXT}/vocabulary.txt",
        train=f"{OTHER_TEXT}/train.npy",
        valid=f"{OTHER_TEXT}/valid.npy",
        test=f"{OTHER_TEXT}/test.npy",
        record=f"{OTHER_TEXT}/run.json",
    log:
        f"{OTHER_TEXT}/corpus.log",
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("data_mem_mb"),
        runtime=job_runtime("data"),
    params:
        trained=corpus_folder,
        folder=lambda wildcards, output: os.path.dirname(output.description),
        flags=other_data_flags(),
    message:
        "Prepare the text {wildcards.away} for models of {wildcards.dataset}"
    shell:
        "python -m reproduction.data.shifted.text --trained {params.trained:q} --name {wildcards.away} --out {params.folder:q}"
        " {params.flags} > {log:q} 2>&1"


use rule kneser_ney as kneser_ney_away with:
    input:
        rules.other_text.output,
    output:
        metrics=f"{OTHER_NGRAM}/metrics@{{away}}.json",
        record=f"{OTHER_NGRAM}/run.json",
    log:
        f"{OTHER_NGRAM}/kneser_ney.log",
    params:
        folder=lambda wildcards: OTHER_TEXT.format(**wildcards),
        labels=lambda wildcards: labels(config=wildcards.config, dataset=wildcards.dataset),
    message:
        "Count n-grams of {wildcards.dataset}, and look at {wildcards.away}: kneser-ney{wildcards.order}"


use rule evaluate_language_model as evaluate_language_model_away with:
    input:
        corpus=rules.other_text.output,
        model=f"{LM_RUN}/model.safetensors",
    output:
        metrics=f"{LM_RUN}/metrics@{{away}}.json",
        record=f"{LM_RUN}/metrics@{{away}}.run.json",
    log:
        f"{LM_RUN}/evaluate@{{away}}.log",
    params:
        corpus=lambda wildcards: OTHER_TEXT.format(**wildcards),
        flags=flags({"split": "test", **LM["evaluation"], "device": job_resource("device")}),
    message:
        "Evaluate a language model on {wildcards.away}: {wildcards.variant}, tau {wildcards.tau}, seed {wildcards.seed}"


rule other_pairs:
    input:
        rules.pairs.output,
    output:
        description=f"{OTHER_PAIRS}/pairs.json",
        record=f"{OTHER_PAIRS}/run.json",
        text=expand(f"{OTHER_PAIRS}/test.{{language}}", language=languages(), allow_missing=True),
        subwords=expand(f"{OTHER_PAIRS}/subwords/test.{{language}}", language=languages(), allow_missing=True),
    log:
        f"{OTHER_PAIRS}/pairs.log",
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("data_mem_mb"),
        runtime=job_runtime("data"),
    params:
        trained=pairs_folder,
        folder=lambda wildcards, output: os.path.dirname(output.description),
        flags=other_data_flags(),
    message:
        "Prepare the sentence pairs {wildcards.away} for models of {wildcards.dataset}"
    shell:
        "python -m reproduction.data.shifted.pairs --trained {params.trained:q} --name {wildcards.away} --out {params.folder:q}"
        " {params.flags} > {log:q} 2>&1"


rule binarise_away:
    # Through the dictionary of the training, which is that of both languages.
    input:
        pairs=rules.other_pairs.output,
        trained=rules.binarise.output,
    output:
        dictionaries=expand(f"{OTHER_BINARISED}/dict.{{language}}.txt", language=languages(), allow_missing=True),
        record=f"{OTHER_BINARISED}/run.json",
    log:
        f"{OTHER_BINARISED}/binarise.log",
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("data_mem_mb"),
        runtime=job_runtime("data"),
    params:
        script=script("fairseq/preprocess.py"),
        dictionary=lambda wildcards: f"{binarised_folder(wildcards)}/dict.{SOURCE_LANGUAGE}.txt",
        subwords=lambda wildcards: f"{OTHER_PAIRS}/subwords".format(**wildcards),
        folder=lambda wildcards: OTHER_BINARISED.format(**wildcards),
        languages=f"--source-lang {SOURCE_LANGUAGE} --target-lang {TARGET_LANGUAGE}",
    message:
        "Binarise {wildcards.away} for models of {wildcards.dataset}"
    shell:
        "python {params.script:q} {params.languages} --joined-dictionary --srcdict {params.dictionary:q}"
        " --destdir {params.folder:q} --testpref {params.subwords:q}/test > {log:q} 2>&1"


use rule copy_source as copy_source_away with:
    input:
        rules.other_pairs.output,
    output:
        metrics=f"{OTHER_COPY}/metrics@{{away}}.json",
        record=f"{OTHER_COPY}/metrics@{{away}}.run.json",
    log:
        f"{OTHER_COPY}/copy.log",
    params:
        hypotheses=lambda wildcards: f"{OTHER_PAIRS}/test.{SOURCE_LANGUAGE}".format(**wildcards),
        references=lambda wildcards: f"{OTHER_PAIRS}/test.{TARGET_LANGUAGE}".format(**wildcards),
        labels=lambda wildcards: labels(
            experiment="translation", variant="copy", config=wildcards.config, dataset=wildcards.dataset
        ),
    message:
        "Score the copied source of {wildcards.away}"


use rule translate as translate_away with:
    input:
        data=rules.binarise_away.output,
        model=f"{MT_RUN}/checkpoint.pt",
    output:
        translations=f"{MT_RUN}/translations@{{away}}/generate-test.txt",
        record=f"{MT_RUN}/translations@{{away}}/run.json",
    log:
        f"{MT_RUN}/translate@{{away}}.log",
    params:
        data=lambda wildcards: OTHER_BINARISED.format(**wildcards),
    message:
        "Translate {wildcards.away}: {wildcards.variant}{wildcards.sites}, tau {wildcards.tau}, seed {wildcards.seed}"


use rule score_translation as score_translation_away with:
    input:
        pairs=rules.other_pairs.output,
        data=rules.binarise_away.output,
        model=f"{MT_RUN}/checkpoint.pt",
        translations=f"{MT_RUN}/translations@{{away}}/generate-test.txt",
    output:
        metrics=f"{MT_RUN}/metrics@{{away}}.json",
        record=f"{MT_RUN}/metrics@{{away}}.run.json",
    log:
        f"{MT_RUN}/score@{{away}}.log",
    params:
        data=lambda wildcards: OTHER_BINARISED.format(**wildcards),
        references=lambda wildcards: f"{OTHER_PAIRS}/test.{TARGET_LANGUAGE}".format(**wildcards),
    message:
        "Score {wildcards.away}: {wildcards.variant}{wildcards.sites}, tau {wildcards.tau}, seed {wildcards.seed}"


rule other_rows:
    input:
        stand_ins=stand_ins,
    output:
        directory(OTHER_ROWS),
    log:
        f"{AWAY}/rows.log",
    wildcard_constraints:
        experiment="glue|squad",
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("data_mem_mb"),
        runtime=job_runtime("data"),
    params:
        module=other_rows_module,
        flags=other_rows_flags,
    message:
        "Prepare {wildcards.away} for models of {wildcards.dataset}"
    shell:
        "python -m {params.module} --name {wildcards.away} --out {output:q} {params.flags} > {log:q} 2>&1"


use rule majority as majority_away with:
    input:
        stand_ins=lambda wildcards: stand_ins(wildcards, "glue"),
        other=OTHER_ROWS.replace("{experiment}", "glue"),
    output:
        metrics=f"{MAJORITY}/metrics@{{away}}.json",
        record=f"{MAJORITY}/metrics@{{away}}.run.json",
    log:
        f"{MAJORITY}/majority@{{away}}.log",
    params:
        data=other_majority_flags,
    message:
        "Count the answers of {wildcards.away}, for models of {wildcards.dataset}"


rule evaluate_finetuned_away:
    # The weights are temporary: Snakemake keeps them until this is done, if it is asked for beside the training; asked for
    # later, it trains again.
    input:
        rows=OTHER_ROWS,
        model=f"{BERT_RUN}/model",
    output:
        metrics=f"{BERT_RUN}/metrics@{{away}}.json",
        record=f"{BERT_RUN}/metrics@{{away}}.run.json",
    log:
        f"{BERT_RUN}/evaluate@{{away}}.log",
    wildcard_constraints:
        experiment="glue|squad",
    conda:
        "../envs/environment.yaml"
    threads: job_resource("threads")
    resources:
        mem_mb=job_resource("mem_mb"),
        gpu=job_resource("gpu"),
        runtime=job_runtime("evaluation"),
    params:
        script=bert_script,
        work=lambda wildcards, output: f"{os.path.dirname(output.metrics)}/evaluation@{wildcards.away}",
        flags=evaluation_away_flags,
        labels=bert_labels,
    message:
        "Evaluate on {wildcards.away}: {wildcards.dataset}, {wildcards.variant}, tau {wildcards.tau}, seed {wildcards.seed}"
    shell:
        "python {params.script:q} --model_name_or_path {input.model:q} --do_eval --data_dir {input.rows:q}"
        " --output_dir {params.work:q} --seed {wildcards.seed} --threads {threads} {params.flags} {params.labels}"
        " > {log:q} 2>&1\n"
        "mv {params.work:q}/metrics.json {output.metrics:q}\n"
        "mv {params.work:q}/run.json {output.record:q}\n"
        "rm -r {params.work:q}"
