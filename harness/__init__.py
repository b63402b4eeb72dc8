"""What methods, protocols, tables and SLURM share; it imports none of them."""
