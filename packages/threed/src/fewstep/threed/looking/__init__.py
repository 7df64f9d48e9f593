"""Looking at scenes: pictures from all around, as films, sheets, pages one can turn, and a viewer."""
