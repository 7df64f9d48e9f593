"""Single pictures: what one holds (:mod:`.picture`), reading and writing it, 16-bit PNG (:mod:`.deep`)."""
