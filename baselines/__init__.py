"""The systems the papers compare with, one file each."""
