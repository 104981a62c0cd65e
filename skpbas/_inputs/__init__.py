"""What users give: images, targets, masks and parameters, checked here and nowhere else."""
