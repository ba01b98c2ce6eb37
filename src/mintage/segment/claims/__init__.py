"""The papers' claims about segmenters, measured again: one file per method, with a function `check`."""
