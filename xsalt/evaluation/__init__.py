"""Every language in one run: accuracies, result files, predictions; comparisons of methods over seeds."""
