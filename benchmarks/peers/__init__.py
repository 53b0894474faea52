"""Other systems that are measured beside Butterfly. They are downloaded and built outside the source tree."""
