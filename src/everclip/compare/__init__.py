"""Compare finished runs: sort them into cells, check that they are comparable, test and show them."""
