"""Pictures of one scene side by side: brought to one size (:mod:`.panels`), as a PNG, and as a page that wipes."""
