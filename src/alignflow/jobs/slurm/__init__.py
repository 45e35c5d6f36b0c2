"""Jobs on a Slurm cluster whose nodes see the run folders."""
