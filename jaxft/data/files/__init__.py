"""Files of records as data sets: JSONL, JSON, CSV, TSV, Parquet, Arrow; told by their columns, checked row by row."""
