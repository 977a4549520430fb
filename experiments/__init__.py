"""One module per system: composes the library, compares with a baseline, writes a result file."""
