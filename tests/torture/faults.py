"""Faults tried, what happens, and the test that shows it; `python tests/torture/faults.py` writes the page."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "reliability.md"

TORTURE, CHANGES, SURVIVAL = "torture/test_torture.py", "core/test_reliability.py", "train/test_survival.py"
CONFIG, TABLES, LABELS = "data/test_config.py", "data/test_tables.py", "data/test_labels.py"
SOURCE, IMAGE, NETWORK = "core/test_source.py", "data/test_image.py", "model/test_network.py"
UPLOADS = "app/test_uploads.py"
FAULTS = [  # fault, what happens, file, test
    (
        "kill -9, SIGTERM or Ctrl-C at a rename or any other moment of any step",
        "status 137, 143 or 130; the same command writes the same numbers and leaves nothing over",
        TORTURE,
        "test_a_step_that_is_ended_at_a_rename_or_any_moment_continues",
    ),
    (
        "SIGTERM or Ctrl-C while Python runs a destructor, which ignores it",
        "the step ends all the same",
        CHANGES,
        "test_a_signal_in_a_destructor_is_not_lost",
    ),
    (
        "kill -9 anywhere in a training",
        "the same command writes the same bytes (CPU)",
        SURVIVAL,
        "test_a_run_killed_anywhere_writes_the_bytes_of_one_that_was_not",
    ),
    (
        "SIGTERM in a training",
        "it saves, also inside an epoch, and ends with 143",
        CHANGES,
        "test_sigterm_saves_inside_the_epoch_and_the_same_command_continues",
    ),
    (
        "the hours are over inside an epoch",
        "status 75; the same command continues",
        SURVIVAL,
        "test_hours_end_inside_an_epoch_and_the_same_command_continues",
    ),
    (
        "the disk is full",
        "one line that names the file, status 2; the same command continues",
        TORTURE,
        "test_a_full_disk_is_one_line_and_the_same_command_continues",
    ),
    (
        "a folder that can't be written, files that can't be read",
        "one line that names it, and FOLDWISE_ROOT, status 2; with permission the same command continues",
        TORTURE,
        "test_a_folder_without_permission_is_one_line",
    ),
    (
        "the hours are over in 03, 05 or 07",
        "status 75; finished folds are kept for the same command (07: the page stays as it was)",
        CHANGES,
        "test_hours_end_03_05_and_07_and_what_is_there_stays",
    ),
    (
        "any output emptied, cut, or a bit of it flipped",
        "made again, refused by name, said, or without effect on the numbers of any step after it",
        TORTURE,
        "test_a_damaged_output_is_made_again_refused_or_harmless",
    ),
    (
        "a damaged checkpoint",
        "training continues from the one before",
        SURVIVAL,
        "test_a_damaged_checkpoint_falls_back_to_the_one_before",
    ),
    (
        "predictions, run.json, a fold's rows, an encoder or a saved blend that changed and still can be read",
        "said for what people edit (predictions, run.json); the rest is refused",
        CHANGES,
        "test_what_changed_since_it_was_written_is_said_or_refused",
    ),
    ("a flipped bit in weights", "refused", CHANGES, "test_a_flipped_bit_in_weights_is_noticed"),
    (
        "a damaged submissions/log.csv",
        "set aside; the submission is written",
        CHANGES,
        "test_a_damaged_log_never_costs_a_submission",
    ),
    (
        "two steps at once",
        "the second is refused, or neither harms the other",
        TORTURE,
        "test_two_steps_at_once_are_refused_or_do_no_harm",
    ),
    (
        "two processes train one fold",
        "the second is refused, and deletes nothing",
        CHANGES,
        "test_restart_and_other_settings_are_refused_while_a_fold_trains",
    ),
    (
        "another group, folds.n or folds file in a competition with folds",
        "every step refuses, and names what changed and --new-folds",
        CHANGES,
        "test_a_changed_competition_file_is_refused_once_folds_exist",
    ),
    (
        "anything else of the competition changed between steps: metric, labels, columns, rows, images",
        "refused, or the numbers of a competition that was so from the start; runs keep what they have learnt of an "
        "image that is replaced",
        TORTURE,
        "test_a_competition_that_changes_between_steps_is_refused_or_done_anew",
    ),
    (
        "labels changed once a run is trained",
        "02, 04, 05 and --oof refuse the run",
        CHANGES,
        "test_other_labels_are_never_mixed_into_a_run",
    ),
    (
        "other image options in the middle of a run",
        "refused",
        CHANGES,
        "test_other_image_options_are_never_mixed_into_a_run",
    ),
    (
        "an image replaced by another of the same size and time",
        "read again",
        CHANGES,
        "test_an_image_replaced_by_one_of_the_same_size_is_read_again",
    ),
    (
        "training images gone",
        "01 refuses and leaves the caches as they were",
        CHANGES,
        "test_a_refused_01_leaves_the_caches_as_they_were",
    ),
    ("a class renamed", "05 refuses", CHANGES, "test_a_renamed_class_never_takes_another_ones_column"),
    ("the reader of a pipe is gone", "status 141", CHANGES, "test_a_closed_pipe_is_no_success"),
    ("01 killed", "none of its processes lives on", CHANGES, "test_no_process_outlives_a_killed_01"),
    ("YAML that grows without end", "refused", CHANGES, "test_aliases_of_aliases_are_refused"),
    ("a key of YAML that is wrong, a regex too", "one line", CONFIG, "test_bad_competition_is_one_clear_line"),
    ("a file that is no table", "one line", TABLES, "test_what_is_no_table_is_one_line"),
    ("cells without a meaning", "refused", LABELS, "test_cells_without_a_meaning_are_refused"),
    ("targets beyond float32", "refused", LABELS, "test_a_target_that_no_network_can_learn_is_refused"),
    ("targets beyond int64", "kept as they are", LABELS, "test_whole_numbers_that_int64_does_not_hold_stay_floats"),
    (
        "a sample submission of other ids",
        "01 says it, before anything is trained",
        "data/test_submission.py",
        "test_what_step_6_would_refuse_is_known_before_anything_is_trained",
    ),
    ("ids that climb out of the raw folder", "refused", SOURCE, "test_ids_lead_nowhere_else"),
    ("a bomb in an archive", "set aside", SOURCE, "test_a_zip_member_that_would_explode_is_no_picture"),
    ("an archive that broke off", "named", SOURCE, "test_an_archive_that_broke_off_is_named"),
    ("an image that is a bomb", "set aside", IMAGE, "test_bombs_are_refused_before_they_are_decoded"),
    ("damaged images", "set aside", IMAGE, "test_damaged_images_never_crash_or_hang"),
    ("damaged DICOM", "set aside", "dicom/test_dicom.py", "test_damaged_made_files_never_crash_or_hang"),
    (
        "a decoder that hangs",
        "stopped after a minute; the row is set aside",
        "core/test_parallel.py",
        "test_a_decoder_that_hangs_is_stopped_and_costs_one_row",
    ),
    (
        "large images, and many of them",
        "each worker of 01 holds a few decoded images at a time",
        "core/test_parallel.py",
        "test_the_memory_of_each_worker_is_a_few_images",
    ),
    ("weights that hold code", "refused", NETWORK, "test_a_file_that_would_run_code_is_refused"),
    ("weights of another model", "refused", NETWORK, "test_weights_of_another_model_are_refused"),
    (
        "script in classes, columns and cells",
        "it reaches no page",
        "report/test_report.py",
        "test_a_report_for_every_task",
    ),
    ("script in a run's strings", "it reaches no page", CHANGES, "test_script_in_a_run_reaches_no_page"),
    ("uploads: wrong types, damage", "refused by name", UPLOADS, "test_wrong_types_and_damage_are_refused_by_name"),
    ("uploads: a zip bomb", "refused before it grows", UPLOADS, "test_zip_bombs_are_refused_before_they_grow"),
    ("uploads: a DICOM bomb", "cut short", UPLOADS, "test_a_deflated_dicom_bomb_is_cut_short"),
    (
        "uploads: a file that crashes its decoder",
        "its own worker process ends",
        UPLOADS,
        "test_a_crash_in_a_decoder_takes_nobody_along",
    ),
    (
        "uploads: a file that takes too much memory",
        "refused; its worker process has 3 GiB",
        UPLOADS,
        "test_a_file_that_takes_too_much_memory_is_refused",
    ),
    (
        "uploads: names that climb out of their folder",
        "an id, never a path",
        UPLOADS,
        "test_an_archive_is_unpacked_and_its_names_never_name_a_file",
    ),
]


def page() -> str:
    """docs/reliability.md."""
    rows = [f"| {fault} | {happens} | [{test}](../tests/{file}) |" for fault, happens, file, test in FAULTS]
    return "\n".join(
        [
            "# Reliability",
            "",
            "For whoever wants to know what happens when something goes wrong. Written by `tests/torture/faults.py`.",
            "",
            "`make torture` ends, starves, damages and doubles the steps of a tiny competition, and changes it between "
            "them: a sample of what can happen, another with each FOLDWISE_TORTURE_SEED. `make torture LONG=1` takes "
            "every rename of every step, every output and every pair of steps, which is an hour and more.",
            "",
            "| what goes wrong | what happens | shown by |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
