"""Finished runs beside each other: sorted into cells, checked to be comparable, tested, shown."""
