"""Claims of speed, each a script that can be run again; results in RESULTS.md."""
