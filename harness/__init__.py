"""Everything that the methods, the protocols, the tables and SLURM share; imports nothing above it."""
