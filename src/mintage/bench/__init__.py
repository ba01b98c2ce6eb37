"""The joint comparison of each job's methods on a model and data of your own, and what studies measure with."""
