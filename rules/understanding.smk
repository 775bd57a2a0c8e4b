# GLUE and SQuAD: pretrained weights -> dense fine-tuning -> pattern -> mask -> sparse fine-tuning, which evaluates at its end.
MAJORITY = f"{folder_of('glue')}/majority"

# Tokenised rows, which all runs of the same data, model and lengths share.
PREPARED = "runs/{config}/{experiment}/prepared"

# Both experiments are the same rules, each with a script of its own.
BERT_RUN = f"{FOLDER}/{RUN}".replace("{sites}", "")
BERT_DENSE = f"{FOLDER}/{DENSE}"


def task_data_flags(wildcards, input):
    """Where a task's data is; none leaves it to AP_DATA_DIR, or else the hub."""
    folder = config["data_dir"] and os.path.expanduser(config["data_dir"])
    return flags({"data_dir": input.get("stand_ins") or folder})


def bert_script(wildcards):
    """The script of an experiment."""
    return script(f"bert/src/run_{wildcards.experiment}.py")


def bert_device():
    """The flag that chooses where the model runs; auto is none, and takes a GPU if there is one."""
    return {"cpu": "--use_cpu", "cuda": "", "auto": ""}[job_resource("device")]


def task_flags(wildcards):
    """Which task, how long its sequences are, and where they are kept once tokenised."""
    own = config[wildcards.experiment]
    task = {"task_name": wildcards.dataset} if wildcards.experiment == "glue" else {}
    lengths = own.get("task_lengths", {}).get(wildcards.dataset, own["lengths"])
    prepared = {"prepared_dir": PREPARED.format(**wildcards)}
    return f"{flags({**task, **lengths, **prepared})} {bert_device()}"


def finetuning_flags(wildcards):
    """Flags of a training and its evaluation."""
    own = config[wildcards.experiment]
    limits = {name: own["dataset"][name] for name in ("max_train_samples", "max_eval_samples")}
    saving = {"save_strategy": "steps" if own["training"]["save_steps"] else "no", "save_total_limit": 1}
    return flags({**own["model"], **own["training"], **own["evaluation"], **limits, **saving})


def averaging_flags(wildcards):
    """Flags of the averaging of a fine-tuned model's attention, over the text that it was trained on."""
    own = config[wildcards.experiment]
    limits = {"max_train_samples": own["dataset"]["max_train_samples"]}
    return flags({**own["pattern"], **own["evaluation"], **limits})


def bert_mask(wildcards):
    """The mask of a sparse training; a dense one has none."""
    return [] if wildcards.variant == "dense" else f"{BERT_RUN}/mask.safetensors".format(**wildcards)


def bert_pruning_flags(wildcards, input):
    """The published flags of a sparse training; none for a dense one."""
    return flags({"prune": True, "attn_path": input.mask}) if input.get("mask") else ""


def bert_labels(wildcards):
    """Labels of a model's evaluation."""
    return run_labels(wildcards, wildcards.experiment, "self")


def glue_metrics_files():
    """Every metrics file that the figure needs."""
    files = []
    for task in GLUE["dataset"]["tasks"]:
        files.append(f"{MAJORITY}/metrics.json".format(config=config["name"], dataset=task))
        files += model_files("glue", task, models("glue"), "metrics.json")
    return files


GLUE_METRICS = glue_metrics_files()
SQUAD_METRICS = model_files("squad", SQUAD["dataset"]["name"], models("squad"), "metrics.json")


rule majority:
    # The majority-class baseline.
    input:
        stand_ins=lambda wildcards: stand_ins(wildcards, "glue"),
    output:
        metrics=f"{MAJORITY}/metrics.json",
        record=f"{MAJORITY}/metrics.run.json",
    log:
        f"{MAJORITY}/majority.log",
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=job_runtime("data"),
    params:
        data=task_data_flags,
        labels=lambda wildcards: labels(config=wildcards.config),
    message:
        "Count the answers of {wildcards.dataset}"
    shell:
        "python -m reproduction.scores.majority --task_name {wildcards.dataset} {params.data} --out {output.metrics:q}"
        " {params.labels} > {log:q} 2>&1"


rule finetune:
    # As in the other experiments, training/ outlives an interruption. Weights are large and many: once the pattern of a dense
    # model is averaged, none of them is needed; --notemp keeps them.
    input:
        stand_ins=stand_ins,
        mask=bert_mask,
    output:
        model=temp(directory(f"{BERT_RUN}/model")),
        metrics=f"{BERT_RUN}/metrics.json",
        record=f"{BERT_RUN}/run.json",
    log:
        f"{BERT_RUN}/finetune.log",
    wildcard_constraints:
        experiment="glue|squad",
    conda:
        "../envs/environment.yaml"
    threads: job_resource("threads")
    resources:
        mem_mb=job_resource("mem_mb"),
        gpu=job_resource("gpu"),
        runtime=job_runtime("finetuning"),
    params:
        script=bert_script,
        work=lambda wildcards, output: f"{os.path.dirname(output.metrics)}/training",
        data=task_data_flags,
        task=task_flags,
        flags=finetuning_flags,
        pruning=bert_pruning_flags,
        labels=bert_labels,
    message:
        "Fine-tune: {wildcards.dataset}, {wildcards.variant}, tau {wildcards.tau}, seed {wildcards.seed} ({log})"
    shell:
        "python {params.script:q} --do_train --do_eval --output_dir {params.work:q} --set_aside --seed {wildcards.seed} --threads {threads}"
        " {params.task} {params.data} {params.flags} {params.pruning} {params.labels} > {log:q} 2>&1\n"
        "cp {params.work:q}/metrics.json {output.metrics:q}\n"
        "cp {params.work:q}/run.json {output.record:q}\n"
        "rm -rf {params.work:q}/checkpoint-*\n"
        "mv {params.work:q} {output.model:q}"


rule average_finetuned:
    input:
        stand_ins=stand_ins,
        model=f"{BERT_DENSE}/model",
    output:
        pattern=f"{BERT_DENSE}/pattern.safetensors",
        record=f"{BERT_DENSE}/pattern.run.json",
    log:
        f"{BERT_DENSE}/pattern.log",
    wildcard_constraints:
        experiment="glue|squad",
    conda:
        "../envs/environment.yaml"
    threads: job_resource("threads")
    resources:
        mem_mb=job_resource("mem_mb"),
        gpu=job_resource("gpu"),
        runtime=job_runtime("averaging"),
    params:
        script=bert_script,
        work=lambda wildcards, output: f"{os.path.dirname(output.pattern)}/averaging",
        data=task_data_flags,
        task=task_flags,
        flags=averaging_flags,
    message:
        "Average the attention: {wildcards.dataset}, dense, seed {wildcards.seed}"
    shell:
        "python {params.script:q} --model_name_or_path {input.model:q} --save_attention_patterns --attn_path {output.pattern:q}"
        " --output_dir {params.work:q} --seed {wildcards.seed} --threads {threads} {params.task} {params.data} {params.flags}"
        " > {log:q} 2>&1\n"
        "mv {params.work:q}/run.json {output.record:q}\n"
        "rm -r {params.work:q}"
