import os

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_configure(config):
    """Check tensor shapes at run time, in tests only: annotations of the library become assertions."""
    from jaxtyping import install_import_hook

    config.stash[_hook] = install_import_hook("mintage", "beartype.beartype")
    config.stash[_hook].__enter__()


def pytest_unconfigure(config):
    config.stash[_hook].__exit__(None, None, None)


_hook = pytest.StashKey()
