"""The laws over timm's models, in a process that has timm."""

from pathlib import Path


def test_the_laws_hold_for_models_of_timm(timm_folder, run_apart):
    run_apart(Path(__file__).with_name("timm_cases.py"), MINTAGE_TIMM=str(timm_folder))
