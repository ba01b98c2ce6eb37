"""``python -m mintage``: the command line, where the script is not on the path."""

from mintage.cli import main

main()
