RESULT = "results/{sample}/{file}"
PATIENCE = "" if config["pool"]["patience_s"] is None else f"--patience-s {config['pool']['patience_s']}"


# A replica is a pool and its consumers. They form one group, in which one failure ends all: consumers are light and never
# fail because of a sample. `list_failures`, outside the group, reads from the receipts which samples failed; what comes
# after it is made of the others, and the last job of a run, `check_samples`, fails if there are any. Consumers of
# external pools are jobs like any other; what they say is on the terminal, too, since they may have to wait for somebody.


rule pool:
    input:
        holdfast=ENTRY,
        models=prepared_models,
    output:
        endpoint=service(".holdfast/pool.{replica}.json"),
    log:
        "logs/pool.{replica}.log",
    conda:
        "../../envs/pool.yaml"
    threads: PLAN.threads
    resources:
        gpu=PLAN.gpu or 0,
    params:
        settings=lambda wildcards: PLAN.pool_settings,  # from a function, since braces in a text are a pattern
        spool=lambda wildcards: SPOOL,
    shell:
        'exec "${{HOLDFAST_PYTHON:-python}}" {input.holdfast:q} serve --config {params.settings:q} --spool {params.spool:q}'
        " --endpoint {output.endpoint:q} > {log:q} 2>&1"


for number, share in enumerate(PLAN.consumers):

    rule:
        name:
            f"embed_{number}"
        input:
            holdfast=ENTRY,
            endpoint=f".holdfast/pool.{share.replica}.json" if SERVICE else [],
            fasta=[sequences(SAMPLES[name]) for name in share.samples],
            models=prepared_models,
            classifier=given_classifier,
        output:
            receipts=[f"results/{name}/receipt.json" for name in share.samples],
        log:
            f"logs/embed/{number}.log",
        conda:
            "../../envs/tables.yaml"
        threads: 0 if SERVICE else 1
        resources:
            mem_mb=0 if SERVICE else 200,
        params:
            plan=lambda wildcards: PLAN.path,
            number=number,
            spool=lambda wildcards: SPOOL,
            results=lambda wildcards, output: os.path.dirname(os.path.dirname(output.receipts[0])),
            pool=lambda wildcards, input: f"--endpoint {shlex.quote(input.endpoint)}" if input.endpoint else PATIENCE,
            classifier=lambda wildcards, input: (
                f"--classifier {shlex.quote(input.classifier)}" if input.classifier else ""
            ),
        shell:
            ("exec " if SERVICE else "")
            + '"${{HOLDFAST_PYTHON:-python}}" {input.holdfast:q} submit {params.plan:q} --consumer {params.number}'
            " --models {input.models:q} --spool {params.spool:q} {params.pool} {params.classifier}"
            " --results {params.results:q}" + (" > {log:q} 2>&1" if SERVICE else " 2>&1 | tee {log:q}")


# A pool of a run of several takes parts of the large samples of others as long as it has a consumer, so it gets one.
for replica in range(len(SHARED)):

    rule:
        name:
            f"share_{replica}"
        input:
            holdfast=ENTRY,
            endpoint=f".holdfast/pool.{replica}.json",
        output:
            ended=f"{RUN}/shared.{replica}",
        log:
            f"logs/embed/share_{replica}.log",
        conda:
            "../../envs/tables.yaml"
        threads: 0
        resources:
            mem_mb=0,
        params:
            plan=lambda wildcards: PLAN.path,
            results=lambda wildcards: place("results"),
        shell:
            'exec "${{HOLDFAST_PYTHON:-python}}" {input.holdfast:q} share {params.plan:q} --results {params.results:q}'
            " --endpoint {input.endpoint:q} --output {output.ended:q} > {log:q} 2>&1"


rule collect:
    input:
        holdfast=ENTRY,
        # What is not pending stands, whatever the times of files say that were copied or moved.
        receipt=lambda wildcards: (
            f"results/{wildcards.sample}/receipt.json"
            if wildcards.sample in PENDING
            else ancient(f"results/{wildcards.sample}/receipt.json")
        ),
        # In a module the sample's file, so that Snakemake notices a rule around that makes it anew.
        made=lambda wildcards: (
            sequences(SAMPLES[wildcards.sample]) if IS_MODULE and not SAMPLES[wildcards.sample].url else []
        ),
    output:
        embeddings="results/{sample}/embeddings.h5",
        records="results/{sample}/records.tsv",
    log:
        "logs/collect/{sample}.log",
    localrule: True
    conda:
        "../../envs/tables.yaml"
    params:
        fasta=lambda wildcards: SAMPLES[wildcards.sample].fasta,
        fetched=lambda wildcards, input: os.path.join(os.path.dirname(input.receipt), client.FETCHED),
        records=lambda wildcards, input: os.path.join(os.path.dirname(input.receipt), client.FETCHED_RECORDS),
    shell:  # to begin with, without Python: 2,000 samples are 2,000 of these jobs
        "[[ {params.fetched:q} -nt {params.fasta:q} ]] && mv {params.records:q} {output.records:q}"
        " && mv {params.fetched:q} {output.embeddings:q} || "
        '"${{HOLDFAST_PYTHON:-python}}" {input.holdfast:q} collect {input.receipt:q} --fasta {params.fasta:q}'
        " --output {output.embeddings:q} --records {output.records:q} 2>&1 | tee {log:q}"


checkpoint list_failures:
    input:
        holdfast=ENTRY,
        sheet=local(PLAN.sheet),
        receipts=expand(RESULT, sample=SAMPLES, file="receipt.json"),
    output:
        failures=report(
            "results/failures.tsv", caption="../report/failures.rst", category="Tables", labels={"figure": "Failures"}
        ),
    log:
        "logs/list_failures.log",
    localrule: True
    conda:
        "../../envs/tables.yaml"
    params:
        results=lambda wildcards, output: os.path.dirname(output.failures),
    shell:
        '"${{HOLDFAST_PYTHON:-python}}" {input.holdfast:q} list-failures {input.sheet:q} --results {params.results:q}'
        " --output {output.failures:q} 2>&1 | tee {log:q}"


rule export:
    input:
        holdfast=ENTRY,
        embeddings="results/{sample}/embeddings.h5",
    output:
        embeddings=directory("results/{sample}/uniprot"),
    log:
        "logs/export/{sample}.log",
    conda:
        "../../envs/tables.yaml"
    shell:
        '"${{HOLDFAST_PYTHON:-python}}" {input.holdfast:q} export {input.embeddings:q}'
        " --output {output.embeddings:q} 2>&1 | tee {log:q}"
