# dense training -> pattern -> mask -> sparse training -> evaluation; every seed is an experiment of its own.
rule train:
    # Training has a folder of its own, training/: Snakemake deletes the outputs of a job that was interrupted, and the checkpoint and
    # the best weights so far must outlive that, so that the next attempt continues from them.
    input:
        corpus=rules.corpus.output,
        mask=training_mask,
    output:
        model=f"{RUN}/model.safetensors",
        record=f"{RUN}/run.json",
    log:
        f"{RUN}/train.log",
    benchmark:
        f"{RUN}/train.benchmark.tsv"
    conda:
        "../envs/transformer-xl.yaml"
    threads: job_resource("threads")
    resources:
        mem_mb=job_resource("mem_mb"),
        gpu=job_resource("gpu"),
    params:
        script=script("transformer-xl/train.py"),
        corpus=corpus_folder,
        work=lambda wildcards, output: f"{os.path.dirname(output.model)}/training",
        flags=flags({**LM["model"], **LM["training"], "device": job_resource("device")}),
        mask=lambda wildcards, input: flags({"fn": input.get("mask")}),
    message:
        "Train: {wildcards.variant}, tau {wildcards.tau}, seed {wildcards.seed}"
    shell:
        "python {params.script:q} --data {params.corpus:q} --work_dir {params.work:q} --restart"
        " --seed {wildcards.seed} --threads {threads} {params.flags} {params.mask} > {log:q} 2>&1\n"
        "cp {params.work:q}/model.safetensors {output.model:q}\n"
        "cp {params.work:q}/run.json {output.record:q}\n"
        "rm -r {params.work:q}"


rule pattern:
    input:
        corpus=rules.corpus.output,
        model=f"{DENSE}/model.safetensors",
    output:
        pattern=f"{DENSE}/pattern.safetensors",
        record=f"{DENSE}/pattern.run.json",
    log:
        f"{DENSE}/pattern.log",
    benchmark:
        f"{DENSE}/pattern.benchmark.tsv"
    conda:
        "../envs/transformer-xl.yaml"
    threads: job_resource("threads")
    resources:
        mem_mb=job_resource("mem_mb"),
        gpu=job_resource("gpu"),
    params:
        script=script("transformer-xl/compute_mask.py"),
        corpus=corpus_folder,
        flags=flags({**LM["pattern"], "device": job_resource("device")}),
    message:
        "Average the attention: dense, seed {wildcards.seed}"
    shell:
        "python {params.script:q} --checkpoint {input.model:q} --data {params.corpus:q} --out {output.pattern:q}"
        " --threads {threads} {params.flags} > {log:q} 2>&1"


rule mask:
    input:
        pattern=f"{DENSE}/pattern.safetensors",
    output:
        f"{LM_FOLDER}/data/tau{{tau}}/seed{{seed}}/mask.safetensors",
    log:
        f"{LM_FOLDER}/data/tau{{tau}}/seed{{seed}}/mask.log",
    benchmark:
        f"{LM_FOLDER}/data/tau{{tau}}/seed{{seed}}/mask.benchmark.tsv"
    conda:
        "../envs/transformer-xl.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("mem_mb"),
    params:
        flags=mask_flags(),
    message:
        "Mask: data, tau {wildcards.tau}, seed {wildcards.seed}"
    shell:
        "python -m attention_pruning.cli mask {input.pattern:q} --tau {wildcards.tau} {params.flags}"
        " --output {output:q} > {log:q} 2>&1"


rule control_mask:
    input:
        like=f"{LM_FOLDER}/data/tau{{tau}}/seed{{seed}}/mask.safetensors",
    output:
        f"{RUN}/mask.safetensors",
    log:
        f"{RUN}/mask.log",
    benchmark:
        f"{RUN}/mask.benchmark.tsv"
    wildcard_constraints:
        variant="random|window",
    conda:
        "../envs/transformer-xl.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("mem_mb"),
    params:
        # A window is not drawn, so it has no seed.
        flags=lambda wildcards: flags({"seed": wildcards.seed}) if wildcards.variant == "random" else "",
    message:
        "Mask: {wildcards.variant}, tau {wildcards.tau}, seed {wildcards.seed}"
    shell:
        "python -m attention_pruning.cli mask --{wildcards.variant}-like {input.like:q} {params.flags}"
        " --output {output:q} > {log:q} 2>&1"


rule evaluate:
    input:
        corpus=rules.corpus.output,
        model=f"{RUN}/model.safetensors",
    output:
        metrics=f"{RUN}/metrics{{lengths}}.json",
        record=f"{RUN}/metrics{{lengths}}.run.json",
    log:
        f"{RUN}/evaluate{{lengths}}.log",
    benchmark:
        f"{RUN}/evaluate{{lengths}}.benchmark.tsv"
    wildcard_constraints:
        lengths=r"(@\d+-\d+)?",
    conda:
        "../envs/transformer-xl.yaml"
    threads: job_resource("threads")
    resources:
        mem_mb=job_resource("mem_mb"),
        gpu=job_resource("gpu"),
    params:
        script=script("transformer-xl/eval.py"),
        corpus=corpus_folder,
        flags=evaluation_flags,
        labels=run_labels,
    message:
        "Evaluate: {wildcards.variant}, tau {wildcards.tau}, seed {wildcards.seed} {wildcards.lengths}"
    shell:
        "python {params.script:q} --checkpoint {input.model:q} --data {params.corpus:q} --out {output.metrics:q}"
        " --threads {threads} {params.flags} {params.labels} > {log:q} 2>&1"
