"""From a table to jobs: plan what is missing, submit it, and the two functions a job runs."""
