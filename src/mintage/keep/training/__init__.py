"""What methods of this job learn."""
