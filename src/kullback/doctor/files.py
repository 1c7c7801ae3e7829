"""Checks of the files of a run: damaged checkpoints and models."""

from pathlib import Path

from kullback.doctor.finding import Finding
from kullback.runs.checksums import find_damage, find_model_damage
from kullback.runs.run_directory import checkpoint_step

__all__ = ["check_checkpoints", "check_model_files"]


def check_checkpoints(directory: Path, *, is_written: bool, model_step: int | None = None) -> list[Finding]:
    """Check the checkpoints in a directory, or the checkpoint that it is, by the checksums that `--resume` uses.

    Args:
        directory: The directory of the checkpoints, or a checkpoint.
        is_written: Whether a process writes to the run; the newest checkpoint may then be incomplete, and is not
            checked.
        model_step: The number of steps of the intact model of the run, which needs no checkpoint of as many steps;
            None if the run has no such model.

    Returns:
        `damaged-checkpoint` for each checkpoint with a missing or damaged file.
    """
    found = [path for path in directory.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    checkpoints = sorted(found, key=checkpoint_step) or (
        [directory] if (directory / "trainer_state.json").is_file() else []
    )
    checked = {path: find_damage(path) for path in (checkpoints[:-1] if is_written else checkpoints)}
    intact = [path.name for path, damage in checked.items() if damage is None]
    remedy = (
        f"--resume continues from {intact[-1]}, the newest intact checkpoint"
        if intact
        else "no checkpoint is intact: copy the checkpoints again, or train again with --overwrite"
    )
    of_finished = f"the trained model is complete, and does not need the checkpoint; for more steps, {remedy}"
    return [
        Finding(
            "damaged-checkpoint",
            "warning",
            f"{path.name} is damaged: {damage}; a save was interrupted, the disk was full, or a copy was incomplete",
            of_finished if model_step is not None and checkpoint_step(path) <= model_step else remedy,
            {"checkpoint": str(path), "damage": damage, "intact": intact},
        )
        for path, damage in checked.items()
        if damage is not None
    ]


def check_model_files(directory: Path) -> list[Finding]:
    """Check that the weights of a saved model are complete.

    Args:
        directory: The directory of the model; the check passes where it does not exist.

    Returns:
        `damaged-model` where a file with weights is missing or truncated.
    """
    damage = find_model_damage(directory)
    if damage is None:
        return []
    cause = f"{directory.name}: {damage}; a write was interrupted, the disk was full, or a copy was incomplete"
    remedy = "copy the directory again; a model is written again by --resume from an earlier checkpoint"
    return [Finding("damaged-model", "error", cause, remedy, {"directory": str(directory), "damage": damage})]
