# The pool and its consumers form one group, in which one failure ends all: consumers are light and never fail because
# of a sample; `collect`, outside the group, raises a sample's error.


rule pool:
    input:
        script=script("serve_pool"),
        models=prepared_models,
    output:
        endpoint=service(".holdfast/endpoint.json"),
    log:
        "logs/pool.log",
    conda:
        "../../envs/models.yaml"
    threads: PLAN.threads
    resources:
        gpu=PLAN.gpu or 0,
    params:
        settings=PLAN.pool_settings,
        spool=lambda wildcards, output: os.path.join(os.path.dirname(output.endpoint), "spool"),
    shell:
        'exec "${{HOLDFAST_PYTHON:-python}}" {input.script:q} --config {params.settings:q} --spool {params.spool:q}'
        " --endpoint {output.endpoint:q} > {log:q} 2>&1"


rule embed:
    input:
        script=script("submit_job"),
        endpoint=".holdfast/endpoint.json",
        fasta=fasta_of,
        models=prepared_models,
    output:
        receipt="results/{sample}/receipt.json",
    log:
        "logs/embed/{sample}.log",
    wildcard_constraints:
        sample=PLAN.pattern,
    conda:
        "../../envs/tables.yaml"
    threads: 0
    resources:
        mem_mb=0,
    params:
        kind=lambda wildcards: SAMPLES[wildcards.sample].kind,
        chunk_length=config["chunk_length"],
        precision=config["precision"],
        store_dtype=config["store_dtype"],
    shell:
        'exec "${{HOLDFAST_PYTHON:-python}}" {input.script:q} {input.fasta:q} --sample {wildcards.sample} --kind {params.kind}'
        " --chunk-length {params.chunk_length} --models {input.models:q} --precision {params.precision}"
        " --store-dtype {params.store_dtype} --endpoint {input.endpoint:q} --receipt {output.receipt:q} > {log:q} 2>&1"


rule collect:
    input:
        script=script("collect_embeddings"),
        receipt="results/{sample}/receipt.json",
    output:
        embeddings="results/{sample}/embeddings.h5",
    log:
        "logs/collect/{sample}.log",
    conda:
        "../../envs/tables.yaml"
    shell:
        '"${{HOLDFAST_PYTHON:-python}}" {input.script:q} {input.receipt:q} --output {output.embeddings:q} 2>&1 | tee {log:q}'
