# From the pattern of a dense model to the masks of the sparse ones, in every experiment.
rule mask:
    input:
        pattern=dense_pattern,
    output:
        f"{FOLDER}/{{variant}}/tau{{tau}}/seed{{seed}}/mask{{site}}.safetensors",
    log:
        f"{FOLDER}/{{variant}}/tau{{tau}}/seed{{seed}}/mask{{site}}.log",
    benchmark:
        f"{FOLDER}/{{variant}}/tau{{tau}}/seed{{seed}}/mask{{site}}.benchmark.tsv"
    wildcard_constraints:
        variant=rf"data|other-seed|block\d*|entmax-data|{CHOICE}",
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("mem_mb"),
        runtime=job_runtime("small"),
    params:
        flags=mask_flags,
    message:
        "Mask: {wildcards.experiment}, {wildcards.variant}, tau {wildcards.tau}, seed {wildcards.seed} {wildcards.site}"
    shell:
        "python -m attention_pruning.cli mask {input.pattern:q} --tau {wildcards.tau} {params.flags}"
        " --output {output:q} > {log:q} 2>&1"


rule control_mask:
    input:
        like=f"{FOLDER}/data/tau{{tau}}/seed{{seed}}/mask{{site}}.safetensors",
        observed=observed_pattern,
    output:
        f"{FOLDER}/{{variant}}/tau{{tau}}/seed{{seed}}/mask{{site}}.safetensors",
    log:
        f"{FOLDER}/{{variant}}/tau{{tau}}/seed{{seed}}/mask{{site}}.log",
    benchmark:
        f"{FOLDER}/{{variant}}/tau{{tau}}/seed{{seed}}/mask{{site}}.benchmark.tsv"
    wildcard_constraints:
        variant="random|window|window-sinks|shuffled-heads",
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("mem_mb"),
        runtime=job_runtime("small"),
    params:
        flags=control_flags,
    message:
        "Mask: {wildcards.experiment}, {wildcards.variant}, tau {wildcards.tau}, seed {wildcards.seed} {wildcards.site}"
    shell:
        "python -m attention_pruning.cli mask {params.flags}" " --output {output:q} > {log:q} 2>&1"


rule distance_mask:
    # The control that knows the pattern, averaged over all positions of a distance.
    input:
        pattern=dense_pattern,
        like=f"{FOLDER}/data/tau{{tau}}/seed{{seed}}/mask{{site}}.safetensors",
        observed=observed_pattern,
    output:
        f"{FOLDER}/{{variant}}/tau{{tau}}/seed{{seed}}/mask{{site}}.safetensors",
    log:
        f"{FOLDER}/{{variant}}/tau{{tau}}/seed{{seed}}/mask{{site}}.log",
    benchmark:
        f"{FOLDER}/{{variant}}/tau{{tau}}/seed{{seed}}/mask{{site}}.benchmark.tsv"
    wildcard_constraints:
        variant="distance|distance-sinks",
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("mem_mb"),
        runtime=job_runtime("small"),
    params:
        flags=control_flags,
    message:
        "Mask: {wildcards.experiment}, {wildcards.variant}, tau {wildcards.tau}, seed {wildcards.seed} {wildcards.site}"
    shell:
        "python -m attention_pruning.cli mask {input.pattern:q} {params.flags}" " --output {output:q} > {log:q} 2>&1"
