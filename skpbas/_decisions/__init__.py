"""From scores and anomaly maps to answers: labels, p-values, masks and regions."""
