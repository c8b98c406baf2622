"""From a cohort to a release: model by model, resumable."""
