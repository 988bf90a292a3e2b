"""From files to batches: readers, tokenised data sets, batches of similar length."""
