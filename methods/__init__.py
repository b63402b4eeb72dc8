"""The two methods this project reproduces, one file each."""
