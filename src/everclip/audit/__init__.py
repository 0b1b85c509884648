"""Look through a data set for what spoils a comparison: duplicate pictures, wrong labels, broken and tiny files."""
