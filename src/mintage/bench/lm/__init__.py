"""What the bench and the studies of lm measure."""
