"""The papers' claims about audits, measured again: one file per method, with a function `check`."""
