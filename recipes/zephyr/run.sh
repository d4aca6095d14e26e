#!/usr/bin/env bash
# Zephyr in three steps: supervised fine-tuning, preference pairs, DPO.
#
#   trl-distill recipe zephyr/run.sh > run.sh
#   bash run.sh                    one GPU: 4-bit base with LoRA
#   GPUS=8 bash run.sh             eight GPUs: all weights, DeepSpeed ZeRO-3
#   FEEDBACK=1 bash run.sh         with preference pairs of your own instead of ready ones
#
# Run it again after it was stopped: finished steps are skipped, the others go on from their last checkpoint. OUT is the
# folder of the results. DSFT, DDPO and FEEDBACK_CONFIG are the YAML files: recipes/... are found from anywhere.
set -euo pipefail

GPUS=${GPUS:-1}
OUT=${OUT:-runs/zephyr}
FEEDBACK=${FEEDBACK:-0}
FEEDBACK_CONFIG=${FEEDBACK_CONFIG:-recipes/zephyr/feedback.yaml}
if ((GPUS == 1)); then
    DSFT=${DSFT:-recipes/zephyr/dsft_qlora.yaml}
    DDPO=${DDPO:-recipes/zephyr/ddpo_qlora.yaml}
    launch=()
else
    DSFT=${DSFT:-recipes/zephyr/dsft_full.yaml}
    DDPO=${DDPO:-recipes/zephyr/ddpo_full.yaml}
    launch=(--accelerate_config zero3 --num_processes "$GPUS")
fi

before=() # what was finished before the next step

# is_done STEP: whether it was finished. One that is older than what it starts from holds another model
is_done() {
    local other
    for other in "${before[@]}"; do
        if [[ -e $1 && $other -nt $1 ]]; then
            echo "$1 is older than $other. Move it, its folder and what came after it away to make them anew." >&2
            exit 1
        fi
    done
    [[ -e $1 ]]
}

# train COMMAND CONFIG OUTPUT [FLAG ...]
train() {
    local command=$1 config=$2 output=$3 resume=()
    shift 3
    if is_done "$output.done"; then
        echo "$output: is done"
        return
    fi
    if compgen -G "$output/checkpoint-*/trainer_state.json" > /dev/null; then
        echo "$output: goes on from its last checkpoint"
        resume=(--resume_from_checkpoint latest)
    fi
    trl-distill "$command" --config "$config" --output_dir "$output" "${launch[@]}" "${resume[@]}" "$@"
    touch "$output.done"
}

# 1. A chat model
train sft "$DSFT" "$OUT/dsft"
start=$OUT/dsft
before=("$OUT/dsft.done")

# A LoRA goes into its base, on disk: the reference of DPO is the model without the new LoRA
if [[ -f $OUT/dsft/adapter_config.json ]]; then
    start=$OUT/dsft-merged
    if is_done "$start"; then
        echo "$start: is done"
    else
        trl-distill merge "$OUT/dsft" --output "$start"
    fi
    before+=("$start")
fi

# 2. Preference pairs of your own
data=()
if ((FEEDBACK)); then
    if [[ -f $OUT/feedback.done ]]; then
        echo "$OUT/feedback: is done"
    else
        # The student is the model of step 1, wherever that is
        if [[ -f $FEEDBACK_CONFIG ]]; then
            config=$(< "$FEEDBACK_CONFIG")
        else
            config=$(trl-distill recipe "$FEEDBACK_CONFIG")
        fi
        printf '%s\n' "${config//runs\/zephyr\/dsft-merged/"$start"}" > "$OUT/feedback.yaml"
        trl-distill feedback --config "$OUT/feedback.yaml" --output_dir "$OUT/feedback"
        touch "$OUT/feedback.done"
    fi
    before+=("$OUT/feedback.done")
    data=(--dataset_name "$OUT/feedback/pairs.jsonl" --dataset_train_split train --dataset_test_split test)
    data+=(--test_split_size 0.02)
fi

# 3. DPO
train dpo "$DDPO" "$OUT/ddpo" --model_name_or_path "$start" "${data[@]}"

if [[ -f $OUT/ddpo/adapter_config.json ]]; then
    echo "The result is the LoRA $OUT/ddpo on $start. One model of both: trl-distill merge $OUT/ddpo --output DIR"
else
    echo "The result is $OUT/ddpo."
fi
