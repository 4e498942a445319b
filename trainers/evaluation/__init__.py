"""Evaluation of a pipeline on clips: every direction beside its controls, sweeps of settings, and a page of it all.

judge = load_judge("shapes_world")
clips = load_clips(pipe, load_from_disk("outputs/demo/data")["validation"], judge)
result, numbers, media = evaluate_direction(pipe, clips, Direction(("text",), "image"))
"""

from trainers.evaluation.clips import EvaluationClips, load_clips, media_of
from trainers.evaluation.directions import Direction, directions, evaluate_direction, gains
from trainers.evaluation.judges import ShapesWorldJudge, judge_identity, load_judge
from trainers.evaluation.page import sample_rows, write_page
from trainers.evaluation.results import Results, fingerprint, gain_lines, local_folder, main_figures, table
from trainers.evaluation.splits import check_split, choose_rows, divide_rows, groups_of
from trainers.evaluation.sweep import save_best, sweep_target

__all__ = [
    "Direction",
    "EvaluationClips",
    "Results",
    "ShapesWorldJudge",
    "check_split",
    "choose_rows",
    "directions",
    "divide_rows",
    "evaluate_direction",
    "fingerprint",
    "gain_lines",
    "gains",
    "groups_of",
    "judge_identity",
    "load_clips",
    "load_judge",
    "local_folder",
    "main_figures",
    "media_of",
    "sample_rows",
    "save_best",
    "sweep_target",
    "table",
    "write_page",
]
