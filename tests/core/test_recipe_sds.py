"""SDS and its relatives as a recipe: identities between the variants, collapse, scenes instead of students."""
