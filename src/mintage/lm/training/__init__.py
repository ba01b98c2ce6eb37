"""What methods of this job train."""
