#!/usr/bin/env bash
# Zephyr in three steps: supervised fine-tuning, preference pairs, DPO.
#
#   recipes/zephyr/run.sh                    one GPU: 4-bit base with LoRA
#   GPUS=8 recipes/zephyr/run.sh             eight GPUs: all weights, DeepSpeed ZeRO-3
#   FEEDBACK=1 recipes/zephyr/run.sh         with preference pairs of your own instead of ready ones
#
# Run it again after it was stopped: finished steps are skipped, the others go on from their last checkpoint. OUT is the
# folder of the results. DSFT, DDPO and FEEDBACK_CONFIG are the YAML files, relative to the root of the repository.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

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

# train COMMAND CONFIG OUTPUT [FLAG ...]
train() {
    local command=$1 config=$2 output=$3 resume=()
    shift 3
    if [[ -f $output.done ]]; then
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

# A LoRA goes into its base, on disk: the reference of DPO is the model without the new LoRA
if [[ -f $OUT/dsft/adapter_config.json ]]; then
    start=$OUT/dsft-merged
    if [[ -d $start ]]; then
        echo "$start: is done"
    else
        trl-distill merge "$OUT/dsft" --output "$start"
    fi
fi

# 2. Preference pairs of your own
data=()
if ((FEEDBACK)); then
    if [[ -f $OUT/feedback.done ]]; then
        echo "$OUT/feedback: is done"
    else
        trl-distill feedback --config "$FEEDBACK_CONFIG" --output_dir "$OUT/feedback"
        touch "$OUT/feedback.done"
    fi
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
