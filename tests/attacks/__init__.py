"""What a stranger's files try to have run, and every way in that they could come by."""
