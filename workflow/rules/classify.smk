rule train:
    input:
        script=script("train_classifier"),
        virus=embeddings_of("virus"),
        other=embeddings_of("other"),
    output:
        classifier="results/classifier/classifier.safetensors",
        metrics="results/classifier/metrics.json",
        history="results/classifier/history.tsv",
        confusion="results/classifier/confusion.tsv",
    log:
        "logs/train.log",
    benchmark:
        "benchmarks/train.tsv"
    conda:
        "../../envs/models.yaml"
    params:
        seed=config["seed"],
        threshold=config["threshold"],
    shell:
        '"${{HOLDFAST_PYTHON:-python}}" {input.script:q} --virus {input.virus:q} --other {input.other:q} --seed {params.seed}'
        " --output {output.classifier:q} --metrics {output.metrics:q} --history {output.history:q}"
        " --confusion {output.confusion:q} 2>&1 | tee {log:q}"


rule convert_classifier:
    input:
        script=script("convert_classifier"),
        published=local(config["classifier"] or []),
    output:
        classifier="resources/classifier.safetensors",
    log:
        "logs/convert_classifier.log",
    conda:
        "../../envs/models.yaml"
    shell:
        '"${{HOLDFAST_PYTHON:-python}}" {input.script:q} {input.published:q} {output.classifier:q} 2>&1 | tee {log:q}'


rule classify:
    input:
        script=script("classify_frames"),
        embeddings="results/{sample}/embeddings.h5",
        classifier=classifier_file,
    output:
        frames="results/{sample}/frames.tsv",
    log:
        "logs/classify/{sample}.log",
    conda:
        "../../envs/tables.yaml"
    shell:
        '"${{HOLDFAST_PYTHON:-python}}" {input.script:q} {input.embeddings:q} --classifier {input.classifier:q}'
        " --output {output.frames:q} 2>&1 | tee {log:q}"


rule call:
    input:
        script=script("call_contigs"),
        embeddings="results/{sample}/embeddings.h5",
        frames="results/{sample}/frames.tsv",
    output:
        chunks="results/{sample}/chunks.tsv",
        contigs="results/{sample}/contigs.tsv",
        virnucpro=virnucpro_files("results/{sample}/virnucpro"),
    log:
        "logs/call/{sample}.log",
    conda:
        "../../envs/tables.yaml"
    params:
        threshold=config["threshold"],
        virnucpro=lambda wildcards, output: (
            f"--virnucpro {shlex.quote(os.path.dirname(output.virnucpro[0]))}" if output.virnucpro else ""
        ),
    shell:
        '"${{HOLDFAST_PYTHON:-python}}" {input.script:q} {input.embeddings:q} {input.frames:q} --threshold {params.threshold}'
        " --chunks {output.chunks:q} --contigs {output.contigs:q} {params.virnucpro} 2>&1 | tee {log:q}"
