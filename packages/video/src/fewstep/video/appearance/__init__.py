"""How single frames look: choosing and augmenting them, and telling them from the pictures of an image set."""
