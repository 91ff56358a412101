"""How jobs become processes: on this machine (local), or as Slurm jobs. A job's payload is not this room's to know."""
