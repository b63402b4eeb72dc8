"""The evaluation protocols of the papers, one file each."""
