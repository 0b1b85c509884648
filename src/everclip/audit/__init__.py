"""Look through a data set for what spoils a comparison: pictures twice, wrong labels, broken and tiny files."""
