CLASSIFIER = "results/classifier"
PUBLISHED_NAMES = ("prediction_results.txt", "prediction_results_highestscore.csv")
TABLES = ("frames.tsv", "chunks.tsv", "contigs.tsv", "regions.tsv", "regions.bed")
VIRUSES, OTHER_VIRUSES = ("virus.fna.gz", "virus.fna") if config["output_bgzip"] else ("virus.fna", "virus.fna.gz")
CALLING = f"--calls {shlex.quote(json.dumps(config['calls']))} {METHOD}{' --virnucpro' * config['output_virnucpro']}"
MADE = f"{RUN}/called"  # where `classify_small` leaves what `classify_contigs` moves


# Labelled samples train a classifier, a part of them held out to calibrate it; one that is given they calibrate only.
if TRAINS:

    rule train:
        input:
            holdfast=ENTRY,
            virus=[f"results/{name}/embeddings.h5" for name, label in LABELLED.items() if label == "virus"],
            non_viral=[f"results/{name}/embeddings.h5" for name, label in LABELLED.items() if label == "non-viral"],
        output:
            classifier=f"{CLASSIFIER}/classifier.safetensors",
            calibration=f"{CLASSIFIER}/calibration.json",
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
            margin=choose_rules(config["calls"]).margin,
            method=METHOD,
            directory=lambda wildcards, output: os.path.dirname(output.classifier),
        shell:
            '"${{HOLDFAST_PYTHON:-python}}" {input.holdfast:q} train {params.sheet:q} --results {params.results:q}'
            " --seed {params.seed} --margin {params.margin} {params.method} --output {params.directory:q} 2>&1 | tee {log:q}"

else:

    rule calibrate:
        input:
            holdfast=ENTRY,
            classifier=classifier_file,
            virus=[f"results/{name}/embeddings.h5" for name, label in LABELLED.items() if label == "virus"],
            non_viral=[f"results/{name}/embeddings.h5" for name, label in LABELLED.items() if label == "non-viral"],
        output:
            calibration=f"{CLASSIFIER}/calibration.json",
        log:
            "logs/calibrate.log",
        conda:
            "../../envs/models.yaml"
        params:
            sheet=lambda wildcards: PLAN.sheet,
            results=lambda wildcards, output: os.path.dirname(os.path.dirname(output.calibration)),
            margin=choose_rules(config["calls"]).margin,
            method=METHOD,
        shell:
            '"${{HOLDFAST_PYTHON:-python}}" {input.holdfast:q} calibrate {params.sheet:q} --results {params.results:q}'
            " --classifier {input.classifier:q} --margin {params.margin} {params.method} --output {output.calibration:q}"
            " 2>&1 | tee {log:q}"


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


# Where samples are many, one process calls the small ones. Which of them Snakemake will ask for is known afterwards, so this
# is a checkpoint. No job of a sample has it as its input: it runs in every run that embeds, and they would run again.
if IN_ONE_PROCESS:

    checkpoint classify_small:
        input:
            holdfast=ENTRY,
            sheet=local(PLAN.sheet),
            failures="results/failures.tsv",
            classifier=classifier_file,
            calibration=calibration_file,
        output:
            rules=update(".holdfast/called"),
        log:
            "logs/classify_small.log",
        priority: 1
        localrule: True
        conda:
            "../../envs/tables.yaml"
        threads: calling.processes_for(len(CALLED), workflow.cores or 1)
        params:
            calling=CALLING,
            results=lambda wildcards, input: os.path.dirname(input.failures),
            trained="--trained" if TRAINS else "",
            made=lambda wildcards, output: place(MADE),
            viruses=VIRUSES,
        shell:
            '"${{HOLDFAST_PYTHON:-python}}" {input.holdfast:q} classify-small {input.sheet:q} --results {params.results:q}'
            " --failures {input.failures:q} --classifier {input.classifier:q} {params.trained}"
            " --calibration {input.calibration:q} {params.calling}"
            " --made {params.made:q} --viruses {params.viruses:q} --processes {threads} --output {output.rules:q}"
            " 2>&1 | tee {log:q}"


rule classify_contigs:
    input:
        holdfast=ENTRY,
        embeddings="results/{sample}/embeddings.h5",
        classifier=classifier_file,
        calibration=calibration_file,
        fasta=lambda wildcards: ancient(sequences(SAMPLES[wildcards.sample]) or local(SAMPLES[wildcards.sample].fasta)),
    output:
        contigs="results/{sample}/contigs.tsv",
        tables=[f"results/{{sample}}/{name}" for name in TABLES if name != "contigs.tsv"],
        viruses=f"results/{{sample}}/{VIRUSES}",
        virnucpro=[f"results/{{sample}}/virnucpro/{name}" for name in PUBLISHED_NAMES if config["output_virnucpro"]],
    log:
        "logs/classify_contigs/{sample}.log",
    conda:
        "../../envs/tables.yaml"
    params:
        calling=CALLING,
        directory=lambda wildcards, output: os.path.dirname(output.contigs),
        made=lambda wildcards, output: os.path.join(place(MADE), wildcards.sample),
        old=lambda wildcards, output: os.path.join(os.path.dirname(output.contigs), OTHER_VIRUSES),
    shell:  # to begin with, without Python, as `collect`
        "[[ -d {params.made:q} ]] && mv {params.made:q}/* {params.directory:q} && rm -rf {params.made:q} {params.old:q} || "
        '"${{HOLDFAST_PYTHON:-python}}" {input.holdfast:q} classify {input.embeddings:q} --classifier {input.classifier:q}'
        " --calibration {input.calibration:q} {params.calling} --fasta {input.fasta:q} --output {params.directory:q}"
        " --viruses {output.viruses:q} 2>&1 | tee {log:q}"


rule combine:
    input:
        holdfast=ENTRY,
        sheet=local(PLAN.sheet),
        failures="results/failures.tsv",
        contigs=lambda wildcards: expand(RESULT, sample=called(wildcards), file="contigs.tsv"),
        viruses=lambda wildcards: expand(RESULT, sample=called(wildcards), file=VIRUSES),
        classifier=classifier_file,
    output:
        contigs="results/contigs.tsv",
        viruses=f"results/{VIRUSES}",
    log:
        "logs/combine.log",
    localrule: True
    conda:
        "../../envs/tables.yaml"
    params:
        results=lambda wildcards, output: os.path.dirname(output.contigs),
        trained="--trained" if TRAINS else "",
    shell:
        '"${{HOLDFAST_PYTHON:-python}}" {input.holdfast:q} combine {input.sheet:q} --results {params.results:q}'
        " --failures {input.failures:q} --classifier {input.classifier:q} {params.trained}"
        " --contigs {output.contigs:q} --viruses {output.viruses:q} 2>&1 | tee {log:q}"
