"""What a run is: its folder, files, checkpoints and record."""
