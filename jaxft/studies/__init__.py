"""Studies: what an experiment declares, how its arms are tuned and run, and the files that hold what it found."""
