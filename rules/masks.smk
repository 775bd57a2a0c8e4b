# From the pattern of a dense model to the masks of the sparse ones, in every experiment.
def dense_pattern(wildcards):
    """The pattern that a mask is made of."""
    run = f"{FOLDER}/{dense_of(wildcards.variant)}/tau0/seed{{seed}}"
    return f"{run}/pattern{{site}}.safetensors".format(**wildcards)


def averaged_pattern(wildcards):
    """The pattern that a control knows, averaged over all positions of a distance; the others know none."""
    return dense_pattern(wildcards) if wildcards.variant == "distance" else []


def observed_pattern(wildcards):
    """The pattern whose counts make a control mask equal in evaluated sparsity; none if it is to be equal in cells."""
    if config[wildcards.experiment]["pruning"]["controls_equal"] == "effective_sparsity":
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
    seed = wildcards.seed if wildcards.variant == "random" else None
    return flags({"seed": seed, "equal_use": input.get("observed") or None}, dashes=True)


rule mask:
    input:
        pattern=dense_pattern,
    output:
        f"{FOLDER}/{{variant}}/tau{{tau}}/seed{{seed}}/mask{{site}}.safetensors",
    log:
        f"{FOLDER}/{{variant}}/tau{{tau}}/seed{{seed}}/mask{{site}}.log",
    wildcard_constraints:
        variant=rf"data|block\d*|entmax-data|{CHOICE}",
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
        variant="random|window|distance",
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
        "python -m attention_pruning.cli mask {input.pattern:q} --{wildcards.variant}-like {input.like:q} {params.flags}"
        " --output {output:q} > {log:q} 2>&1"
