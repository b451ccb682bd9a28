"""One short file a run; `common` has every default."""
