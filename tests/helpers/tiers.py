"""Which cases of tests that compile for seconds run by default: one of each layout or kind."""

import re

import pytest

# By file and test, or * for every test of a model by name: ids of the cases that run by default.
DEFAULT_CASES = {
    "test_generation.py": {
        "test_generated_texts_are_those_of_torch": "$^",
        "test_beam_search_equals_a_plain_search": "3-7-0|3-9-1",
        "test_generated_token_by_token_equals_reading_it_all": "gpt2_untied",
        "test_greedy_search_equals_a_plain_loop": "ends1",
        "test_cache_has_rows_on_its_second_axis": "qwen2",
    },
    "test_golden.py": {
        "*": "bert_tied|gpt2_tied|llama_grouped",
        "test_mesh_gives_the_stored_outputs": "bert_untied",
        "test_bfloat16_agrees_within_its_rounding": "roberta_tied",
    },
    "test_t5.py": {
        "*": "^(?!.*model:4).*t5_gated$",
        "test_token_by_token_equals_all_at_once": "t5_relu",
        "test_bfloat16_agrees_within_its_rounding": "$^",
        "test_dropout_is_independent_by_layer_row_and_position": "decoder",
        "test_relative_positions_fall_into_the_buckets_of_torch": "t5",
    },
    "test_packing.py": {
        "test_packed_batch_equals_padded_batch": "bert_untied|gpt2_tied",
        "test_with_answers_of_several_tokens": "$^",
        "test_spread_and_collect_are_transposes_with_right_gradients": "^1$",
    },
    "test_scoring_settings.py": {
        "test_every_command_scores_a_prompt_as_tuned": "bert",
        "test_label_words_and_template_are_those_of_tuning": "t5",
    },
    "test_losses.py": {
        "test_scores_and_loss_written_out": "labels-t5",
        "test_loss_of_the_train_step_written_out": "vocabulary-t5",
        "test_transfer_neurons_and_other_layouts": "t5",
        "test_prompt_file_has_the_score_of_the_run": "$^",
        "test_padding_batch_size_and_mesh_change_no_prediction": "$^",
        "test_loss_of_generated_answers_is_that_of_each_row": "t5",
    },
    "test_families.py": {
        "test_shortcut_at_the_answer_equals_every_position": "bert_one_layer|llama_grouped",
        "test_mask_of_ones_is_no_mask_and_zeros_leave_the_bias_only": "bert_one|llama|relu-dec",
        "test_mask_of_one_neuron_affects_that_neuron_only": "roberta|decoder",
        "test_rematerialisation_changes_no_gradient": "$^",
        "test_padding_bucket_batch_and_order_change_nothing": "roberta",
        "test_dropout_is_off_by_default_and_a_function_of_its_key": "gpt2",
        "test_rows_take_their_prompts_from_a_bank": "gpt2_tied",
        "test_no_prompt_is_a_prompt_of_no_rows": "roberta_untied",
        "test_program_does_not_grow_with_depth": "gpt2_tied",
        "test_prompts_at_once_equal_one_after_the_other": "roberta",
        "test_neurons_are_returned_only_if_captured": "bert_one|llama|t5",
    },
    "test_decoder.py": {
        "test_prompt_computed_once_equals_the_plain_concatenation": "llama_grouped-True",
        "test_greedy_steps_agree_with_torch": "gpt2_tied|llama_grouped",
        "test_greedy_steps_on_a_mesh_agree_with_torch": "gpt2_tied",
        "test_masked_neurons_equal_the_plain_computation": "gpt2",
    },
    "test_encoder.py": {"*": "bert_tied|roberta_untied"},
    "test_answers.py": {"*": "t5_gated", "test_gradient_equals_that_of_one_answer_alone": "$^"},
    "test_probe_golden.py": {"*": "^(bert_tied|gpt2_tied|t5_gated)$"},
    "test_masking.py": {
        "test_masks_equal_zero_rows_of_the_second_matrices": "answer[035]",
        "test_scores_equal_evaluate_with_zeroed_weights": "$^",
    },
    "test_dry_run.py": {
        "test_weights_per_device_are_those_of_placed_arrays": "$^",
        "test_weights_are_never_communicated": "t5|bert",
    },
    "test_builtin.py": {
        "test_surface_features_do_not_reveal_the_label": "builtin/imdb_number",
        "test_held_out_splits_are_balanced_and_large_enough": "imdb_number|imdb_negation",
    },
    "test_reference.py": {"test_spearman": "$^"},
    "test_trainer.py": {"test_crashed_run_ends_the_same": "^9$"},
    "test_tokenizer.py": {"test_real_text_gives_the_ids_of_transformers": "bert-base-uncased"},
    "test_tune.py": {"test_padding_batch_size_and_row_order_change_no_metric": "$^"},
    "test_probe.py": {
        "test_a_mesh_changes_no_number": "256",
        "test_the_bank_equals_each_prompt_alone": "^1$",
    },
    "test_projector.py": {"test_both_objectives_agree_with_torch": "leaky"},
    "test_report.py": {"test_missing_part_is_shown_with_its_command": "transfer|mask"},
}

# Fixtures that train for ten seconds and more; every test that needs one is slow.
SLOW_FIXTURES = {
    "test_mixture.py": {"learnt"},
    "test_multi_run.py": {"alone", "together"},
    "test_quickstart.py": {"finished", "finished_and_log"},
    "test_recommend.py": {"found"},
    "test_sweep.py": {"swept"},
    "test_tune.py": {"tuned"},
    "test_warm_start.py": {"study"},
    "test_zero_shot.py": {"seeds_result"},
}


# Of the slow tests the cases that run in .ci/run; the others are long.
CI_CASES = {
    "test_builtin.py": {
        "test_surface_features_do_not_reveal_the_label": "imdb_(number|negation|opening|ending)$",
    },
    "test_dry_run.py": {"test_weights_per_device_are_those_of_placed_arrays": "t5|gpt2"},
    "test_experiments.py": {"test_both_sides_have_the_same_losses": "t5"},
    "test_generate.py": {"test_texts_are_continued_independently": "t5"},
    "test_generation.py": {
        "test_generated_texts_are_those_of_torch": "data:1-t5_gated$",
        "test_beam_search_equals_a_plain_search": "3-7-0|3-9-1|5-6-3",
    },
    "test_golden.py": {"test_mesh_gives_the_stored_outputs": "bert|gpt2_tied|llama_grouped"},
    "test_logging.py": {"test_catalog_tasks_compile_once_per_size": "bert-small"},
    "test_losses.py": {"test_generative_task_from_tuning_to_transfer": "t5"},
    "test_masking.py": {"test_scores_equal_evaluate_with_zeroed_weights": "bert"},
    "test_multi_run.py": {
        "test_group_on_a_mesh": "gpt2-prompt:4|bert-prompt:2",
        "test_packed_run_ends_as_a_padded_one": "data:1-(bert|llama)",
        "test_packed_group": "gpt2",
    },
    "test_packing.py": {
        "test_packed_batch_equals_padded_batch": "(bert|gpt2)_tied|llama_grouped|t5_gated$",
        "test_with_answers_of_several_tokens": "t5_relu|gpt2",
        "test_with_a_prompt_a_row_and_in_groups": "roberta",
        "test_each_device_packs_its_own_rows": "bert|llama",
    },
    "test_parallel.py": {
        "test_every_mesh_gives_the_numbers_of_one_device": "(bert|llama)-(prompt:2|data:8)",
    },
    "test_parity.py": {
        "test_beams_are_those_of_torch": "3-2",
        "test_fixtures_are_the_output_of_torch": "_tied|llama_grouped|t5_relu",
        "test_models_of_real_shapes_agree": "gpt2|roberta",
    },
    "test_quickstart.py": {"test_a_stopped_study_resumes_and_ends_equal": "tune"},
    "test_reference.py": {"test_spearman": "t5-base"},
    "test_step.py": {"test_bank_scores_equal_single_scores": "gpt2-prompt:2|bert-prompt:8"},
    "test_t5.py": {"*": "^(?!.*model:4)|model:4-t5_gated$"},
    "test_trainer.py": {"test_sigkill_at_random_moments": "0"},
    "test_tune.py": {
        "test_custom_loop_is_bit_identical_to_tune": "bert",
        "test_every_builtin_task_is_learnt": "imdb_number",
        "test_padding_batch_size_and_row_order_change_no_metric": "bert|laptop",
        "test_every_task_runs": "bert-small-(sst2|mnli)|t5-mini-(nq_open|qqp)|gpt2-mini-laptop",
    },
}


def mark_slow_cases(items: list[pytest.Item]) -> None:
    for item in items:
        if not _runs_by_default(item):
            item.add_marker(pytest.mark.slow)
        if not _has_case(item, CI_CASES.get(item.path.name, {})):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.long)


def _runs_by_default(item: pytest.Item) -> bool:
    file = item.path.name
    if SLOW_FIXTURES.get(file, set()) & set(getattr(item, "fixturenames", ())):
        return False
    return _has_case(item, DEFAULT_CASES.get(file, {}))


def _has_case(item: pytest.Item, cases: dict[str, str]) -> bool:
    if (call := getattr(item, "callspec", None)) is None:
        return True
    pattern = cases.get(item.originalname, cases.get("*", "") if "name" in call.params else "")
    return re.search(pattern, call.id) is not None
