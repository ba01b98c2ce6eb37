"""``python -m mintage.cli``: the same as ``mintage``."""

from mintage.cli import main

main()
