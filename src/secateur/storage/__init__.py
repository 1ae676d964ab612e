"""Files: atomic writes, saved models, run directories, measured points."""
