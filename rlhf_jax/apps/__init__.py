"""What people run beside training: chat in the terminal, the HTML report."""
