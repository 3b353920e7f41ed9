rule prepare:
    input:
        prepared_models,
        given_classifier,
    localrule: True


rule prepare_weights:
    input:
        holdfast=ENTRY,
        # The checkpoint, so that a newer file is prepared again; a hub id or a synthetic model is none.
        source=lambda wildcards: [local(path) for path in [MODELS[wildcards.model]["weights"]] if os.path.exists(path)],
    output:
        description="resources/{model}/model.json",
        weights="resources/{model}/model.safetensors",
    log:
        "logs/prepare_weights/{model}.log",
    benchmark:
        "benchmarks/prepare_weights/{model}.tsv"
    conda:
        "../../envs/models.yaml"
    params:
        source=lambda wildcards: MODELS[wildcards.model]["weights"],
        sha256=lambda wildcards: (
            f"--sha256 {MODELS[wildcards.model]['sha256']}" if MODELS[wildcards.model]["sha256"] else ""
        ),
        directory=lambda wildcards, output: os.path.dirname(output.description),
    shell:
        '"${{HOLDFAST_PYTHON:-python}}" {input.holdfast:q} prepare {params.source:q}'
        " --output {params.directory:q} {params.sha256} 2>&1 | tee {log:q}"
