# Masks where there are fewer sentence pairs to learn from, and their scores by length: one table, one figure.
rule score_by_length:
    input:
        pairs=rules.pairs.output,
        metrics=f"{MT_RUN}/metrics.json",
        translations=f"{MT_RUN}/translations/generate-test.txt",
    output:
        metrics=f"{MT_RUN}/metrics@length.json",
        record=f"{MT_RUN}/metrics@length.run.json",
    log:
        f"{MT_RUN}/score_by_length.log",
    benchmark:
        f"{MT_RUN}/score_by_length.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=job_runtime("evaluation"),
    params:
        sources=lambda wildcards: f"{pairs_folder(wildcards)}/test.{SOURCE_LANGUAGE}",
        references=lambda wildcards: f"{pairs_folder(wildcards)}/test.{TARGET_LANGUAGE}",
        flags=flags({"lengths": PAIRS_COMPARED["lengths"]}),
    message:
        "Score by length: {wildcards.dataset}, {wildcards.variant}, tau {wildcards.tau}, seed {wildcards.seed}"
    shell:
        "python -m reproduction.scores.length_scores --hypotheses {input.translations:q} --sources {params.sources:q}"
        " --references {params.references:q} --metrics {input.metrics:q} --out {output.metrics:q} {params.flags} > {log:q} 2>&1"


rule pairs_comparison_metrics:
    input:
        PAIRS_COMPARISON_METRICS,
    output:
        report(
            "results/{config}/pairs_comparison.csv",
            caption=figure_caption("pairs_comparison"),
            category="Translation",
            labels={"what": "Fewer pairs, and by length", "as": "table"},
        ),
    log:
        "results/{config}/logs/pairs_comparison.metrics.log",
    benchmark:
        "results/{config}/logs/pairs_comparison.metrics.benchmark.tsv"
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


rule draw_pairs_comparison:
    input:
        "results/{config}/pairs_comparison.csv",
    output:
        figure=report(
            "results/{config}/pairs_comparison.png",
            caption=figure_caption("pairs_comparison"),
            category="Translation",
            labels={"what": "Fewer pairs, and by length", "as": "figure"},
        ),
        caption="results/{config}/pairs_comparison.md",
    log:
        "results/{config}/logs/pairs_comparison.log",
    benchmark:
        "results/{config}/logs/pairs_comparison.benchmark.tsv"
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
        "python -m reproduction.analysis.figures.pairs --metrics {input:q} --out {output.figure:q}"
        " --runs runs/{wildcards.config} > {log:q} 2>&1"
