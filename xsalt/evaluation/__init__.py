"""Every language in one run: accuracies, result files, predictions."""
