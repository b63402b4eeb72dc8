"""One file per speed claim, peers measured in the same run."""
