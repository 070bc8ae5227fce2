"""What a person reads about a study: figures and one self-contained HTML page."""
