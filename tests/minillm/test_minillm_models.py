# Copyright 2026 The trl_distill authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Teachers of all kinds, adapters, and models that are saved."""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.minillm.steps import first_batch, gradients
from tests.runs import assert_same_weights, losses
from trl_distill import MiniLLMConfig, MiniLLMTrainer


def with_padding(tokenizer):
    padded = copy.deepcopy(tokenizer)
    padded.add_special_tokens({"pad_token": "[PAD]"})
    return padded


class TestTeacher:
    def test_padded_vocabularies(self, make_trainer, tiny_model, tokenizer):
        rows = len(tokenizer)
        for student_rows, teacher_rows in [(rows, rows + 5), (rows + 5, rows)]:
            student, teacher = tiny_model(vocab_size=student_rows), tiny_model(seed=1, vocab_size=teacher_rows)
            with torch.no_grad():  # rows beyond the tokenizer that would win every draw
                student.lm_head.weight[rows:] += 50.0
                teacher.lm_head.weight[rows:] += 50.0
            for alpha in (0.0, 0.5):
                trainer = make_trainer(student, teacher, teacher_mix_alpha=alpha)
                inputs = first_batch(trainer)
                assert inputs["completion_ids"].max() < rows
                loss, _ = gradients(trainer, inputs)
                assert torch.tensor(loss).isfinite()
                assert student.lm_head.weight.grad[rows:].abs().sum() == 0
                assert student.lm_head.weight.grad[:rows].abs().sum() > 0

    def test_other_tokenizer(self, make_trainer, tiny_model, tokenizer, tmp_path):
        teacher, path = tiny_model(seed=1), str(tmp_path / "teacher")
        teacher.save_pretrained(path)
        tokenizer.save_pretrained(path)
        make_trainer(teacher_model=path)
        data = json.loads(Path(path, "tokenizer.json").read_text())
        vocabulary = data["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        Path(path, "tokenizer.json").write_text(json.dumps(data))
        with pytest.raises(ValueError, match="GOLD.*sequence-level"):
            make_trainer(teacher_model=path)

    @pytest.mark.parametrize("alpha", [0.0, 0.5])
    def test_padding_that_the_teacher_has_no_row_for(self, make_trainer, tiny_model, tokenizer, prompts, alpha):
        """An added `[PAD]` changes nothing: it is never drawn, and no model reads it."""
        padded, runs = with_padding(tokenizer), []
        for processing_class, rows in ((tokenizer, 260), (padded, 261)):
            model = tiny_model()
            model.resize_token_embeddings(rows, mean_resizing=False)
            model.lm_head.weight.data[260:] = 50.0  # would win every draw
            trainer = make_trainer(
                model, processing_class=processing_class, teacher_mix_alpha=alpha, eval_dataset=prompts, max_steps=2
            )
            trainer.train()
            assert first_batch(trainer)["completion_ids"].max() < 260 == trainer.vocab_size
            assert trainer.evaluate()["eval_kl"] > 0
            runs.append(losses(trainer))
        assert padded.pad_token_id == 260
        if alpha:  # draws from 261 tokens are others
            assert runs[0] == runs[1]

    def test_a_prompt_that_the_teacher_cannot_read(self, make_trainer, tiny_model, tokenizer, prompts):
        student = tiny_model(vocab_size=262)
        odd = copy.deepcopy(tokenizer)
        odd.add_special_tokens({"additional_special_tokens": ["<odd>"]}, replace_extra_special_tokens=False)
        make_trainer(student, processing_class=odd)
        rows = prompts.select([0, 1, 2, 3]).map(lambda row, i: {"prompt": "<odd>" * (i == 2) + "a"}, with_indices=True)
        with pytest.raises(ValueError, match="row 2 of `train_dataset` .*token 260 in the prompt '<odd>a'"):
            make_trainer(student, processing_class=odd, train_dataset=rows)
        odd.chat_template = "<odd>" + tokenizer.chat_template
        talks = prompts.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
        with pytest.raises(ValueError, match="row 0 of `mine` .*token 260 .*chat template"):
            make_trainer(student, processing_class=odd, eval_dataset={"mine": talks})

    def test_a_corpus_that_the_teacher_cannot_read(self, make_trainer, tiny_model, tokenizer, corpus):
        odd = copy.deepcopy(tokenizer)
        odd.add_special_tokens({"additional_special_tokens": ["<odd>"]}, replace_extra_special_tokens=False)
        texts = corpus.map(lambda row: {"text": row["text"] + "<odd>"})
        with pytest.raises(ValueError, match="`lm_dataset` holds '<odd>'"):
            make_trainer(tiny_model(vocab_size=262), processing_class=odd, lm_dataset=texts, lm_max_length=32)

    def test_init_kwargs_without_a_dtype(self, make_trainer, tiny_model, tmp_path):
        tiny_model(seed=1).save_pretrained(tmp_path / "teacher")
        eager = {"attn_implementation": "eager"}
        trainer = make_trainer(teacher_model=str(tmp_path / "teacher"), teacher_model_init_kwargs=eager)
        assert trainer.teacher_model.config._attn_implementation == "eager"

    def test_exactly_one_teacher(self, make_trainer, tiny_model, tokenizer, prompts, tmp_path):
        with pytest.raises(ValueError, match="exactly one teacher"):
            MiniLLMTrainer(
                tiny_model(), args=MiniLLMConfig(str(tmp_path), bf16=False, use_cpu=True), train_dataset=prompts
            )
        with pytest.raises(ValueError, match="exactly one teacher"):
            make_trainer(teacher_model=tiny_model(), teacher_is_base=True, peft_config=LoraConfig())
        with pytest.raises(ValueError, match="has no adapter"):
            make_trainer(teacher_is_base=True)
        with pytest.raises(ValueError, match="already instantiated"):
            make_trainer(teacher_model_init_kwargs={"dtype": "float32"})

    def test_adapter_on_the_head(self, make_trainer):
        with pytest.raises(ValueError, match="lm_head"):
            make_trainer(peft_config=LoraConfig(target_modules=["q_proj", "lm_head"]))

    @pytest.mark.parametrize("alpha", [0.0, 0.5])
    def test_teacher_is_the_base_model(self, make_trainer, tiny_model, alpha):
        torch.manual_seed(0)
        lora = LoraConfig(target_modules=["q_proj", "v_proj"], r=4)
        trainer = make_trainer(peft_config=lora, teacher_is_base=True, teacher_mix_alpha=alpha)
        loss, grads = gradients(trainer, first_batch(trainer))
        assert abs(loss) < 1e-6  # a fresh adapter is its teacher
        with torch.no_grad():
            for name, param in trainer.model.named_parameters():
                if "lora_B" in name:
                    param.normal_(std=0.5)
        base = {name: param.clone() for name, param in trainer.model.named_parameters() if "lora" not in name}
        trainer._buffered_inputs = None
        inputs = first_batch(trainer)
        explicit = make_trainer(teacher_model=tiny_model(seed=0), teacher_mix_alpha=alpha)
        explicit.model.train()
        scores = explicit._score(inputs, [None] * 4)
        torch.testing.assert_close(inputs["teacher_per_token_logps"], scores["teacher_per_token_logps"])
        assert gradients(trainer, inputs)[0] > 0.01
        trainer.train()
        assert all(torch.equal(param, base[name]) for name, param in trainer.model.named_parameters() if name in base)

    def test_base_teacher_needs_the_base_head(self, make_trainer):
        lora = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
        with pytest.raises(ValueError, match="Remove `lm_head` from `modules_to_save`"):
            make_trainer(peft_config=lora, teacher_is_base=True)

    def test_states_on_cpu(self, make_trainer):
        a, b = make_trainer(), make_trainer(teacher_states_on_cpu=True)
        assert gradients(a, first_batch(a))[0] == gradients(b, first_batch(b))[0]

    def test_kept_states_equal_a_fresh_pass(self, make_trainer):
        trainer = make_trainer(score_from="forward")
        inputs = first_batch(trainer)
        again = trainer._score(inputs, [None] * 4)
        assert torch.equal(inputs["teacher_hidden_states"], again["teacher_hidden_states"])


class TestAdapters:
    def test_4bit_student_and_teacher(self, make_trainer, tiny_model, tokenizer, prompts, tmp_path):
        config = dict(hidden_size=64, intermediate_size=64)  # 4-bit blocks hold 64 values
        paths = [str(tmp_path / name) for name in ("student", "teacher")]
        for seed, path in enumerate(paths):
            tiny_model(seed=seed, initializer_range=0.1, **config).save_pretrained(path)
            tokenizer.save_pretrained(path)
        quantization = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}
        loading = dict(quantization_config=BitsAndBytesConfig(**quantization), dtype=torch.float32)

        def make():
            return make_trainer(
                AutoModelForCausalLM.from_pretrained(paths[0], **loading),
                paths[1],
                peft_config=LoraConfig(target_modules="all-linear", r=4),
                teacher_model_init_kwargs={"quantization_config": quantization, "dtype": "float32"},
                bf16=True,
                save_strategy="steps",
                save_steps=2,
                max_steps=4,
                num_iterations=2,  # so that a checkpoint stands between two sets of rollouts
                output_dir=str(tmp_path / "run"),
            )

        trainer = make()
        assert trainer.teacher_model.is_loaded_in_4bit and trainer.model.is_loaded_in_4bit
        before = {name: param.clone() for name, param in trainer.model.named_parameters() if param.requires_grad}
        trainer.train()
        assert all(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters() if p.requires_grad)
        resumed = make()
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
        assert_same_weights(resumed.model, trainer.model)
        output = str(tmp_path / "adapter")
        trainer.save_model(output)
        reloaded = AutoPeftModelForCausalLM.from_pretrained(output, **loading).eval()
        ids = torch.tensor([tokenizer("Say well").input_ids])
        trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
        for param in trained.parameters():
            if param.requires_grad:  # TRL trains the adapter in bf16, and PEFT loads it in fp32
                param.data = param.data.float()
        with torch.no_grad():
            torch.testing.assert_close(reloaded(ids).logits, trained(ids).logits)

    def test_saved_model_loads_with_plain_transformers(self, make_trainer, tokenizer, tmp_path):
        trainer = make_trainer()
        trainer.train()
        trainer.save_model(str(tmp_path / "model"))
        reloaded = AutoModelForCausalLM.from_pretrained(str(tmp_path / "model")).eval()
        ids = torch.tensor([tokenizer("Say well").input_ids])
        with torch.no_grad():
            assert torch.equal(reloaded(ids).logits, trainer.model.eval()(ids).logits)

    def test_model_card_cites_the_paper(self, make_trainer):
        trainer = make_trainer()
        trainer.create_model_card()
        card = Path(trainer.args.output_dir, "README.md").read_text()
        assert "gu2024minillm" in card and "2306.08543" in card

    def test_gradient_checkpointing_changes_nothing(self, make_trainer):
        runs = []
        for checkpointing in (False, True):
            trainer = make_trainer(gradient_checkpointing=checkpointing, max_steps=2)
            trainer.train()
            runs.append(losses(trainer))
        assert runs[0] == pytest.approx(runs[1], rel=1e-5)
