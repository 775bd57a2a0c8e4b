# Softmax beside entmax in translation: what the checkpoints show, one table, one figure.
rule inspect_translation_model:
    # One pass over the evaluated sentences; a CPU is enough.
    input:
        data=rules.binarise.output,
        model=f"{MT_RUN}/checkpoint.pt",
    output:
        metrics=f"{MT_RUN}/metrics@checkpoint.json",
        record=f"{MT_RUN}/metrics@checkpoint.run.json",
    log:
        f"{MT_RUN}/inspect.log",
    benchmark:
        f"{MT_RUN}/inspect.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: job_resource("threads")
    resources:
        mem_mb=job_resource("mem_mb"),
        runtime=job_runtime("evaluation"),
    params:
        script=script("fairseq/inspect_checkpoint.py"),
        data=binarised_folder,
        labels=translation_labels,
    message:
        "Look into a translation model: {wildcards.variant}{wildcards.sites}, tau {wildcards.tau}, seed {wildcards.seed}"
    shell:
        "python {params.script:q} --checkpoint {input.model:q} --data {params.data:q} --threads {threads}"
        " --out {output.metrics:q} {params.labels} > {log:q} 2>&1"


rule entmax_metrics:
    input:
        ENTMAX_METRICS,
    output:
        report(
            "results/{config}/entmax_comparison.csv",
            caption=figure_caption("entmax_comparison"),
            category="Translation",
            labels={"what": "Softmax and entmax", "as": "table"},
        ),
    log:
        "results/{config}/logs/entmax_comparison.metrics.log",
    benchmark:
        "results/{config}/logs/entmax_comparison.metrics.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=job_runtime("small"),
    message:
        "Collect {output}"
    shell:
        "python -m reproduction.analysis.table --config-name {wildcards.config} --out {output:q} {input:q} > {log:q} 2>&1"


rule draw_entmax:
    input:
        "results/{config}/entmax_comparison.csv",
    output:
        figure=report(
            "results/{config}/entmax_comparison.png",
            caption=figure_caption("entmax_comparison"),
            category="Translation",
            labels={"what": "Softmax and entmax", "as": "figure"},
        ),
        caption="results/{config}/entmax_comparison.md",
    log:
        "results/{config}/logs/entmax_comparison.log",
    benchmark:
        "results/{config}/logs/entmax_comparison.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=job_runtime("small"),
    params:
        code=code_of_runs,
    message:
        "Draw {output.figure}"
    shell:
        "python -m reproduction.analysis.figures.entmax --metrics {input:q} --out {output.figure:q}"
        " --runs runs/{wildcards.config} > {log:q} 2>&1"
