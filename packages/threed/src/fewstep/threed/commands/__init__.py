"""What the domain's commands do; imported when one runs."""
