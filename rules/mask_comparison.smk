# Rules, scopes and controls of masks against each other, in every experiment: one table, one figure.
rule mask_comparison_metrics:
    input:
        COMPARISON_METRICS,
    output:
        report(
            "results/{config}/mask_comparison.csv",
            caption=figure_caption("mask_comparison"),
            category="Controls",
            labels={"what": "Rules, scopes and controls", "as": "table"},
        ),
    log:
        "results/{config}/logs/mask_comparison.metrics.log",
    benchmark:
        "results/{config}/logs/mask_comparison.metrics.benchmark.tsv"
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


rule draw_mask_comparison:
    input:
        "results/{config}/mask_comparison.csv",
    output:
        figure=report(
            "results/{config}/mask_comparison.png",
            caption=figure_caption("mask_comparison"),
            category="Controls",
            labels={"what": "Rules, scopes and controls", "as": "figure"},
        ),
        caption="results/{config}/mask_comparison.md",
    log:
        "results/{config}/logs/mask_comparison.log",
    benchmark:
        "results/{config}/logs/mask_comparison.benchmark.tsv"
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
        "python -m reproduction.analysis.figures.masks --metrics {input:q} --out {output.figure:q}"
        " --runs runs/{wildcards.config} > {log:q} 2>&1"
