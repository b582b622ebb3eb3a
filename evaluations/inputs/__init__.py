"""What an evaluation reads: models, data sets and their splits, views of images, features and their pooling."""
