"""What users did with the lists that were shown to them: read, made into training data, compared between variants."""
