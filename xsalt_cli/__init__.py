"""Console scripts: argument handling only, the work is in xsalt."""
