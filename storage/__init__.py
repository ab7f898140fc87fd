"""Files that are written whole or not at all, where things lie, and what code a result came from."""
