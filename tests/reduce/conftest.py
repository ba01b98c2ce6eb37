import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from mintage.files import cache_dir, replace_folder

WANTED = ("timm==1.0.31", "torchvision==0.28.0")


@pytest.fixture(scope="session")
def timm_folder():
    """A folder with timm and torchvision and nothing else, made once; ``MINTAGE_TIMM`` names one that is there.

    It is for the path of a process of its own: beside a torchvision transformers loads other image processors, and
    torchvision's operators are built for another torch than the CPU's.
    """
    if own := os.environ.get("MINTAGE_TIMM"):
        return Path(own)
    folder = cache_dir() / ("-".join(WANTED).replace("==", "-") + f"-torch-{importlib.metadata.version('torch')}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            pip = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "-q",
                "--no-input",
                "--no-deps",
                "--retries",
                "1",
                "--target",
            ]
            with replace_folder(folder) as made:
                done = subprocess.run([*pip, str(made), *WANTED], capture_output=True, text=True, check=False)
                if done.returncode:
                    pytest.skip(f"timm cannot be installed: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    return folder


@pytest.fixture(scope="session")
def run_apart():
    """Run a file of tests in a process of its own, without the run-time checks of shapes (dynamo cannot trace them)."""

    def run(path, **environment):
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:xdist", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, str(path)], env=kept | environment, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert " passed" in done.stdout
        assert "skipped" not in done.stdout

    return run
