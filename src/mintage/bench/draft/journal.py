"""What a bench has measured so far, on disk: a killed run goes on at the prompt where it was.

One folder per run, named by everything that defines it. Answers are appended as they come; when all arms have answered
a prompt, the hot drafters' tables are saved beside them. A run that goes on takes the answers up to the last prompt
that all arms finished and the tables as they were then, so that no hot drafter has learned more, or less, than in one
go. Every ratio is paired within a prompt, so each of its two times is of the same process.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mintage.bench.draft.arm import Arm
from mintage.draft import Stats
from mintage.files import append_line
from mintage.measure.memo import fingerprint

__all__ = ["Journal"]


class Journal:
    """The answers of one run.

    Parameters
    ----------
    work
        Folder that holds the journals of all runs.
    definition
        Everything that defines the run, as JSON values; a run with another definition has another journal.

    Attributes
    ----------
    finished
        Prompts that all arms have answered.
    """

    def __init__(self, work: str | Path, definition: dict[str, Any]) -> None:
        text = json.dumps({**definition, "source": fingerprint()}, sort_keys=True)
        self.folder = Path(work) / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.finished = len(self._finished())

    @property
    def _answers(self) -> Path:
        return self.folder / "answers.jsonl"

    def add(self, prompt: str, arm: str, tokens: Sequence[int], seconds: float, stats: Stats) -> None:
        """Append one answer."""
        row = {
            "prompt": prompt,
            "arm": arm,
            "tokens": list(tokens),
            "seconds": seconds,
            "stats": dataclasses.asdict(stats),
        }
        append_line(self._answers, json.dumps(row))

    def close_prompt(self, prompt: str, arms: Sequence[Arm]) -> None:
        """Save what the hot drafters know after this prompt, and mark it as finished."""
        self.finished += 1
        for name, table in _tables(arms):
            table.save(self.folder / f"after-{self.finished}" / f"{name}.safetensors")
        append_line(self._answers, json.dumps({"finished": prompt}))
        shutil.rmtree(self.folder / f"after-{self.finished - 1}", ignore_errors=True)  # its successor is complete

    def restore(self, arms: Sequence[Arm]) -> list[dict[str, dict[str, Any]]]:
        """Return the finished prompts' answers by arm, and put the hot drafters where they were after the last one."""
        answers = self._finished()
        if answers:
            for name, table in _tables(arms):
                table.load(self.folder / f"after-{len(answers)}" / f"{name}.safetensors")
        return answers

    def _finished(self) -> list[dict[str, dict[str, Any]]]:
        prompts: list[dict[str, dict[str, Any]]] = []
        current: dict[str, dict[str, Any]] = {}
        for line in self._answers.read_text().splitlines() if self._answers.exists() else []:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # killed in mid-line: that answer is measured again
                continue
            if "finished" in row:
                prompts.append(current)
                current = {}
            else:
                current[row["arm"]] = row  # of a prompt asked twice, the later answer
        return prompts

    def delete(self) -> None:
        """Remove the folder: the run is over."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _tables(arms: Sequence[Arm]) -> list[tuple[str, Any]]:
    """Number everything that hot arms have learned, in the arms' order."""
    kept = [table for arm in arms for table in arm.learners]
    return [(str(number), table) for number, table in enumerate(kept)]
