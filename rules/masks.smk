# From the pattern of a dense model to the masks of the sparse ones, in every experiment.
def dense_pattern(wildcards):
    """The pattern that a mask is made of; variant other-seed takes that of the next seed, and of the first after the last."""
    seed = wildcards.seed
    if wildcards.variant == "other-seed":
        seeds = ALL_SEEDS[wildcards.experiment]
        seed = seeds[(seeds.index(int(seed)) + 1) % len(seeds)]
    run = f"{FOLDER}/{dense_of(wildcards.variant)}/tau0/seed{seed}"
    return f"{run}/pattern{{site}}.safetensors".format(**wildcards)


def averaged_pattern(wildcards):
    """The pattern that a control knows, averaged over all positions of a distance; the others know none."""
    return dense_pattern(wildcards) if wildcards.variant.startswith("distance") else []


def observed_pattern(wildcards):
    """The pattern whose counts make a control mask equal in evaluated sparsity; none if it is to be equal in cells.

    Whatever head a mask is on, it takes as much of the use.
    """
    equal = config[wildcards.experiment]["pruning"]["controls_equal"]
    if equal == "effective_sparsity" or wildcards.variant == "shuffled-heads":
        return []
    return f"{FOLDER}/{DENSE}/pattern{{site}}.safetensors".format(**wildcards)


def mask_flags(wildcards):
    """Flags of a data-informed mask. The published rule takes the whole array of a Transformer-XL, hence no crop."""
    pruning = config[wildcards.experiment]["pruning"]
    options = {**rule_and_scope(wildcards.variant, wildcards.experiment), "row_floor": pruning["row_floor"]}
    options["block_size"] = block_size(wildcards, wildcards.experiment)
    return flags({**options, "no_crop": wildcards.experiment == "language_modelling"}, dashes=True)


def control_flags(wildcards, input):
    """Flags of a control mask. A window is not drawn, so it has no seed."""
    variant = wildcards.variant
    options = {f"{variant.removesuffix('-sinks')}-like": input.like}
    options["seed"] = wildcards.seed if variant in ("random", "shuffled-heads") else None
    if variant.endswith("-sinks"):
        options["sinks"] = config[wildcards.experiment]["pruning"]["sinks"]
    return flags({**options, "equal_use": input.get("observed") or None}, dashes=True)


rule mask:
    input:
        pattern=dense_pattern,
    output:
        f"{FOLDER}/{{variant}}/tau{{tau}}/seed{{seed}}/mask{{site}}.safetensors",
    log:
        f"{FOLDER}/{{variant}}/tau{{tau}}/seed{{seed}}/mask{{site}}.log",
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
        pattern=averaged_pattern,
        like=f"{FOLDER}/data/tau{{tau}}/seed{{seed}}/mask{{site}}.safetensors",
        observed=observed_pattern,
    output:
        f"{FOLDER}/{{variant}}/tau{{tau}}/seed{{seed}}/mask{{site}}.safetensors",
    log:
        f"{FOLDER}/{{variant}}/tau{{tau}}/seed{{seed}}/mask{{site}}.log",
    wildcard_constraints:
        variant="random|shuffled-heads|(window|distance)(-sinks)?",
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
