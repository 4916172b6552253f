"""A LeRobot data set with a depth stream for each of its cameras."""
