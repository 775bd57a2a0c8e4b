# pretrained weights -> dense fine-tuning -> pattern -> mask -> sparse fine-tuning; a fine-tuning evaluates at its end.
rule stand_ins:
    output:
        directory(STAND_INS),
    log:
        "runs/{config}/{experiment}/logs/stand_ins.log",
    benchmark:
        "runs/{config}/{experiment}/logs/stand_ins.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("data_mem_mb"),
        runtime=job_runtime("data"),
    params:
        module=lambda wildcards: f"reproduction.data.tasks.{config[wildcards.experiment]['dataset']['source']}",
        flags=stand_in_flags,
    message:
        "Write the stand-ins for {wildcards.experiment}"
    shell:
        "python -m {params.module} --out {output:q} {params.flags} > {log:q} 2>&1"


rule majority:
    # The majority-class baseline.
    input:
        stand_ins=lambda wildcards: stand_ins(wildcards, "glue"),
    output:
        metrics=f"{MAJORITY}/metrics.json",
        record=f"{MAJORITY}/metrics.run.json",
    log:
        f"{MAJORITY}/majority.log",
    benchmark:
        f"{MAJORITY}/majority.benchmark.tsv"
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
    benchmark:
        f"{BERT_RUN}/finetune.benchmark.tsv"
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
    benchmark:
        f"{BERT_DENSE}/pattern.benchmark.tsv"
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


rule measure_efficiency:
    # A timing: let nothing else run beside it where the numbers are to mean something.
    input:
        EFFICIENCY_MASKS,
    output:
        f"{folder_of('squad')}/efficiency.json",
    log:
        f"{folder_of('squad')}/efficiency.log",
    benchmark:
        f"{folder_of('squad')}/efficiency.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: job_resource("threads")
    resources:
        mem_mb=4000,
        gpu=job_resource("gpu"),
        runtime=job_runtime("evaluation"),
    params:
        script=script("bert/src/measure_efficiency.py"),
        flags=efficiency_flags,
    message:
        "Time inference and training under masks of whole blocks"
    shell:
        "python {params.script:q} --masks {input:q} {params.flags} --threads {threads} --out {output:q} > {log:q} 2>&1"
