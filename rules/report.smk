# From the metrics of all runs to one table, and from that to the figure.
rule metrics:
    input:
        FIGURE_METRICS,
    output:
        report(
            "results/{config}/metrics.csv",
            caption="captions/metrics.rst",
            category="What was run",
            labels={"what": "All metrics", "as": "table"},
        ),
    log:
        "results/{config}/logs/metrics.log",
    benchmark:
        "results/{config}/logs/metrics.benchmark.tsv"
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


rule draw:
    input:
        metrics="results/{config}/metrics.csv",
        reference=script("reproduction/analysis/paper_reference.csv"),
    output:
        figure=report(
            "results/{config}/ap_figure.png",
            caption=figure_caption("ap_figure"),
            category="Attention Pruning",
            labels={"what": "The paper's figure", "as": "figure"},
        ),
        caption="results/{config}/ap_figure.md",
    log:
        "results/{config}/logs/ap_figure.log",
    benchmark:
        "results/{config}/logs/ap_figure.benchmark.tsv"
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
        "python -m reproduction.analysis.figures.quality --metrics {input.metrics:q} --reference {input.reference:q}"
        " --out {output.figure:q}"
        " --runs runs/{wildcards.config} > {log:q} 2>&1"


rule draw_tasks:
    input:
        "results/{config}/metrics.csv",
    output:
        figure=report(
            "results/{config}/glue_tasks.png",
            caption=figure_caption("glue_tasks"),
            category="Language understanding",
            labels={"what": "Every task by itself", "as": "figure"},
        ),
        caption="results/{config}/glue_tasks.md",
        numbers=report(
            "results/{config}/glue_tasks.csv",
            caption=figure_caption("glue_tasks"),
            category="Language understanding",
            labels={"what": "Every task by itself", "as": "table"},
        ),
    log:
        "results/{config}/logs/glue_tasks.log",
    benchmark:
        "results/{config}/logs/glue_tasks.benchmark.tsv"
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
        "python -m reproduction.analysis.figures.tasks --metrics {input:q} --out {output.figure:q}"
        " --runs runs/{wildcards.config} > {log:q} 2>&1"


rule choose:
    # results/ap_figure.png is the figure of the configuration at hand.
    input:
        figure=f"results/{config['name']}/ap_figure.png",
        caption=f"results/{config['name']}/ap_figure.md",
    output:
        figure="results/ap_figure.png",
        caption="results/ap_figure.md",
    log:
        "results/ap_figure.log",
    benchmark:
        "results/ap_figure.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=100,
        runtime=job_runtime("small"),
    message:
        "Copy the figure to {output.figure}"
    shell:
        "cp {input.figure:q} {output.figure:q} 2> {log:q}\n" "cp {input.caption:q} {output.caption:q} 2>> {log:q}"


rule site_metrics:
    input:
        TRANSLATION_METRICS,
        TRANSLATION_SITE_METRICS,
    output:
        report(
            "results/{config}/translation_sites.csv",
            caption=figure_caption("translation_sites"),
            category="Translation",
            labels={"what": "Every site pruned alone", "as": "table"},
        ),
    log:
        "results/{config}/logs/translation_sites.metrics.log",
    benchmark:
        "results/{config}/logs/translation_sites.metrics.benchmark.tsv"
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


rule draw_sites:
    input:
        "results/{config}/translation_sites.csv",
    output:
        figure=report(
            "results/{config}/translation_sites.png",
            caption=figure_caption("translation_sites"),
            category="Translation",
            labels={"what": "Every site pruned alone", "as": "figure"},
        ),
        caption="results/{config}/translation_sites.md",
    log:
        "results/{config}/logs/translation_sites.log",
    benchmark:
        "results/{config}/logs/translation_sites.benchmark.tsv"
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
        "python -m reproduction.analysis.figures.sites --metrics {input:q} --out {output.figure:q}"
        " --runs runs/{wildcards.config} > {log:q} 2>&1"


rule squad_metrics:
    input:
        SQUAD_METRICS,
    output:
        report(
            "results/{config}/squad.csv",
            caption="captions/squad.rst",
            category="Language understanding",
            labels={"what": "Questions (SQuAD)", "as": "table"},
        ),
    log:
        "results/{config}/logs/squad.log",
    benchmark:
        "results/{config}/logs/squad.benchmark.tsv"
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


rule efficiency:
    input:
        measured=f"{folder_of('squad')}/efficiency.json".format(config="{config}", dataset=SQUAD["dataset"]["name"]),
        metrics=EFFICIENCY_METRICS,
        reference=script("reproduction/analysis/paper_reference.csv"),
    output:
        figure=report(
            "results/{config}/efficiency_table.png",
            caption=figure_caption("efficiency_table"),
            category="Efficiency",
            labels={"what": "Time and memory of questions (SQuAD)", "as": "figure"},
        ),
        table="results/{config}/efficiency_table.md",
        numbers=report(
            "results/{config}/efficiency_table.csv",
            caption=figure_caption("efficiency_table"),
            category="Efficiency",
            labels={"what": "Time and memory of questions (SQuAD)", "as": "table"},
        ),
    log:
        "results/{config}/logs/efficiency_table.log",
    benchmark:
        "results/{config}/logs/efficiency_table.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=job_runtime("small"),
    message:
        "Write {output.table}"
    shell:
        "python -m reproduction.analysis.figures.efficiency --measured {input.measured:q} --metrics {input.metrics:q}"
        " --reference {input.reference:q} --out {output.figure:q} > {log:q} 2>&1"


rule choose_efficiency:
    # results/efficiency_table.md is the table of the configuration at hand.
    input:
        f"results/{config['name']}/efficiency_table.md",
    output:
        "results/efficiency_table.md",
    log:
        "results/efficiency_table.log",
    benchmark:
        "results/efficiency_table.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=100,
        runtime=job_runtime("small"),
    message:
        "Copy the table to {output}"
    shell:
        "cp {input:q} {output:q} 2> {log:q}"
