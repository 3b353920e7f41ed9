CLASSIFIER = "results/classifier"
PUBLISHED_NAMES = ("prediction_results.txt", "prediction_results_highestscore.csv")


rule train:
    input:
        holdfast=ENTRY,
        virus=[f"results/{name}/embeddings.h5" for name, label in LABELLED.items() if label == "virus"],
        non_viral=[f"results/{name}/embeddings.h5" for name, label in LABELLED.items() if label == "non-viral"],
    output:
        classifier=f"{CLASSIFIER}/classifier.safetensors",
        metrics=f"{CLASSIFIER}/metrics.json",
        history=f"{CLASSIFIER}/history.tsv",
        confusion=f"{CLASSIFIER}/confusion.tsv",
    log:
        "logs/train.log",
    benchmark:
        "benchmarks/train.tsv"
    conda:
        "../../envs/models.yaml"
    params:
        sheet=lambda wildcards: PLAN.sheet,  # no input, since a sheet with one more sample to call trains nothing anew
        results=lambda wildcards, output: os.path.dirname(os.path.dirname(output.classifier)),
        seed=config["seed"],
        threshold=config["threshold"],
        method=named_method(),
        directory=lambda wildcards, output: os.path.dirname(output.classifier),
    shell:
        '"${{HOLDFAST_PYTHON:-python}}" {input.holdfast:q} train {params.sheet:q} --results {params.results:q}'
        " --seed {params.seed} --threshold {params.threshold} {params.method} --output {params.directory:q} 2>&1 | tee {log:q}"


rule convert_classifier:
    input:
        holdfast=ENTRY,
        published=local(config["classifier"] or []),
    output:
        classifier="resources/classifier.safetensors",
    log:
        "logs/convert_classifier.log",
    conda:
        "../../envs/models.yaml"
    shell:
        '"${{HOLDFAST_PYTHON:-python}}" {input.holdfast:q} convert-classifier {input.published:q} {output.classifier:q}'
        " 2>&1 | tee {log:q}"


rule classify_contigs:
    input:
        holdfast=ENTRY,
        embeddings="results/{sample}/embeddings.h5",
        classifier=classifier_file,
    output:
        frames="results/{sample}/frames.tsv",
        chunks="results/{sample}/chunks.tsv",
        contigs="results/{sample}/contigs.tsv",
        virnucpro=[f"results/{{sample}}/virnucpro/{name}" for name in PUBLISHED_NAMES if config["output_virnucpro"]],
    log:
        "logs/classify_contigs/{sample}.log",
    conda:
        "../../envs/tables.yaml"
    params:
        threshold=config["threshold"],
        method=named_method(),
        virnucpro=lambda wildcards, output: (
            f"--virnucpro {shlex.quote(os.path.dirname(output.virnucpro[0]))}" if output.virnucpro else ""
        ),
    shell:
        '"${{HOLDFAST_PYTHON:-python}}" {input.holdfast:q} classify {input.embeddings:q} --classifier {input.classifier:q}'
        " --threshold {params.threshold} {params.method} --frames {output.frames:q} --chunks {output.chunks:q}"
        " --contigs {output.contigs:q} {params.virnucpro} 2>&1 | tee {log:q}"
