"""The papers' claims, one module per method: arms, measures, comparisons. They may use several jobs."""
